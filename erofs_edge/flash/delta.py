# SPDX-License-Identifier: Apache-2.0
"""What goes to a target that can unpack: windows of a region as zstd frames, against what another slot holds.

The reference is a slot that the target is proved to hold, because its digests are those of an image that is here. A
frame is what `zstd --patch-from` makes, window by window: the dictionary is the whole reference, so that blocks that
have moved cost nothing, and a window is small enough to be unpacked on a small board and to be repeated after a cut.
Where a window compresses worse than its blocks that differ, these are sent as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import Findings, Range, chunks

if TYPE_CHECKING:
    import zstandard

WINDOW = 32 << 20  # bytes of a frame's content
PACKED = 1 << 20  # bytes of a frame that has nothing to refer to
LEVEL = 3
WINDOW_LOG_MAX = 30  # what `zstd -d --long=30`, and a 32-bit device, can do
TABLE_LOG_MIN, TABLE_LOG_MAX = 17, 26  # entries of the two tables, of four bytes each


@dataclass(frozen=True, slots=True)
class Reference:
    """Bytes [start, start + length) of the target, proved to be `data`."""

    start: int
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Frame:
    """A delta that gives bytes [start, start + length) of the target; `reference` None stands for no dictionary.
    `wrong`: bytes of these that differ from what the target has."""

    start: int
    length: int
    data: bytes
    reference: Reference | None
    wrong: int


def frames(region: Region, found: Findings, image: Image, reference: Reference | None) -> Iterator[Frame | Range]:
    """For each window in which anything differs, a frame, or the ranges that differ where these are smaller.

    The target may leave blocks alone that a frame gives and that are right already.
    """
    encoder = _Encoder(reference)
    for start, length in chunks(region.data, PACKED if reference is None else WINDOW):
        wrong = [(max(a, start), min(b, start + length)) for a, b in found.write if a < start + length and b > start]
        if not wrong:
            continue
        first, last = wrong[0][0], wrong[-1][1]
        packed = encoder.encode(image.read(first - region.shift, last - first))
        size = sum(b - a for a, b in wrong)
        if len(packed) < size:
            yield Frame(first, last - first, packed, reference, size)
        else:
            yield from wrong


class _Encoder:
    """Compresses against one reference, whose index is made once.

    The library indexes a dictionary in tables that it sizes for small ones, so that of a large one only the end would
    be found: the tables are made as large as the reference needs.
    """

    def __init__(self, reference: Reference | None) -> None:
        import zstandard

        self._dictionary: zstandard.ZstdCompressionDict | None = None
        if reference is None or not reference.length:
            self._parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL)
            return
        window_log = min(WINDOW_LOG_MAX, (reference.length + WINDOW).bit_length())
        table_log = max(TABLE_LOG_MIN, min(TABLE_LOG_MAX, (reference.length // 4).bit_length()))
        self._parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, window_log=window_log, hash_log=table_log, chain_log=table_log
        )
        self._dictionary = zstandard.ZstdCompressionDict(reference.data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._dictionary.precompute_compress(compression_params=self._parameters)

    def encode(self, data: bytes) -> bytes:
        import zstandard

        return zstandard.ZstdCompressor(dict_data=self._dictionary, compression_params=self._parameters).compress(data)
