# SPDX-License-Identifier: Apache-2.0
"""What goes to a target that can unpack: windows of a region as zstd frames, against what another slot holds.

The reference is a slot that the target is proved to hold, because its digests are those of an image that is here. A
frame is what `zstd --patch-from` makes, window by window: the dictionary is the whole reference, so that blocks that
have moved cost nothing, and a window is small enough to be unpacked on a small board and to be repeated after a cut.
Where a window compresses worse than its blocks that differ, these are sent as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from erofs_edge.flash.comparing import Range
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.survey import Findings, chunks

WINDOW = 64 << 20  # bytes of a frame's content
PACKED = 1 << 20  # bytes of a frame that has nothing to refer to
TOGETHER = 16 << 20  # bytes of the content of such frames that follow each other and go as one: a request costs more
LEVEL = 3
WINDOW_LOG_MIN, WINDOW_LOG_MAX = 20, 30  # 30 is what `zstd -d --long=30`, and a 32-bit device, can do
LDM_HASH_LOG_MAX = 24  # matches are found anywhere in a reference of hundreds of megabytes


class Reference(NamedTuple):
    """Bytes [start, start + length) of the target, proved to be `data`."""

    start: int
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


class Frame(NamedTuple):
    """A delta that gives bytes [start, start + length) of the target; `reference` None stands for no dictionary, and
    for several zstd frames, one behind the other. `wrong`: bytes of these that differ from what the target has."""

    start: int
    length: int
    data: bytes
    reference: Reference | None
    wrong: int


class Window(NamedTuple):
    """Bytes [start, end) of a region: from the first that differs to the last; `wrong`: the ranges that do."""

    start: int
    end: int
    wrong: list[Range]

    @property
    def size(self) -> int:
        """Bytes that differ."""
        return sum(end - start for start, end in self.wrong)


def frames(region: Region, found: Findings, image: Image, reference: Reference | None) -> Iterator[Frame | Range]:
    """For each window in which anything differs, a frame, or the ranges that differ where these are smaller.

    The target may leave blocks alone that a frame gives and that are right already.
    """
    if reference is None:
        yield from packed(windows(region, found), image, region.shift)
    else:
        yield from _cut(windows(region, found, WINDOW), image, region.shift, reference)


def windows(region: Region, found: Findings, size: int = PACKED) -> Iterator[Window]:
    """What differs, in stretches of at most `size` bytes."""
    coming, wrong = iter(sorted(found.write)), list[Range]()
    for start, length in chunks(region.data, size):
        wrong = [one for one in wrong if one[1] > start]
        while not wrong or wrong[-1][1] < start + length:
            if (one := next(coming, None)) is None:
                break
            if one[1] > start:
                wrong.append(one)
        inside = [(max(a, start), min(b, start + length)) for a, b in wrong if a < start + length]
        if inside:
            yield Window(inside[0][0], inside[-1][1], inside)


def packed(found: Iterable[Window], image: Image, shift: int) -> Iterator[Frame | Range]:
    """Frames that refer to nothing, together as far as they follow each other; ranges that pack to no less."""
    held: list[Frame] = []
    for piece in _cut(found, image, shift, None):
        if held and not (isinstance(piece, Frame) and _follows(piece, held)):
            yield _joined(held)
            held = []
        if isinstance(piece, Frame):
            held.append(piece)
        else:
            yield piece
    if held:
        yield _joined(held)


def _follows(piece: Frame, held: list[Frame]) -> bool:
    """Whether it goes on where those end, and all of them are not too much for a small board's memory."""
    first, last = held[0], held[-1]
    return piece.start == last.start + last.length <= first.start + TOGETHER - piece.length


def _joined(held: list[Frame]) -> Frame:
    return Frame(
        held[0].start,
        sum(frame.length for frame in held),
        b"".join(frame.data for frame in held),
        None,
        sum(frame.wrong for frame in held),
    )


def _cut(found: Iterable[Window], image: Image, shift: int, reference: Reference | None) -> Iterator[Frame | Range]:
    """A frame for each window, or its ranges."""
    encoder = _Encoder(reference)
    for window in found:
        data = encoder.encode(image.read(window.start - shift, window.end - window.start))
        if len(data) < window.size:
            yield Frame(window.start, window.end - window.start, data, reference, window.size)
        else:
            yield from window.wrong


def patch_bytes(old: bytes, new: bytes) -> int:
    """Bytes of the frames that make `new` of `old`, as `frames` cuts them where everything differs."""
    encoder = _Encoder(Reference(0, old))
    return sum(len(encoder.encode(new[at : at + WINDOW])) for at in range(0, len(new), WINDOW))


class _Encoder:
    """Compresses against one reference."""

    def __init__(self, reference: Reference | None) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        parameter = zstd.CompressionParameter
        self._compress = zstd.compress
        self._options: dict[int, int] = {parameter.compression_level: LEVEL}
        self._prefix = None
        if reference is not None and reference.length:
            window_log = min(WINDOW_LOG_MAX, max(WINDOW_LOG_MIN, (reference.length + WINDOW).bit_length()))
            self._options |= {
                parameter.window_log: window_log,
                parameter.enable_long_distance_matching: 1,
                parameter.ldm_hash_log: min(LDM_HASH_LOG_MAX, window_log - 4),
            }
            self._prefix = zstd.ZstdDict(reference.data, is_raw=True).as_prefix

    def encode(self, data: bytes) -> bytes:
        return self._compress(data, options=self._options, zstd_dict=self._prefix)
