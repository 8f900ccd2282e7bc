# SPDX-License-Identifier: Apache-2.0
"""Make deltas for a target that can unpack: windows of a region as zstd frames that refer to what another slot holds.

The reference is a slot that the target is proved to hold: its digests match an image on this machine. Each window
becomes a frame like those of `zstd --patch-from`. The dictionary is the whole reference, so blocks that have moved cost
nothing, and a window is small enough for a small board to unpack and to be repeated after a power cut. If a frame is
not smaller than the blocks of its window that differ, those are sent as they are.
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
PACKED = 1 << 20  # bytes of content in a frame without a reference
TOGETHER = 16 << 20  # bytes of content in consecutive frames sent as one, because each request has a cost
LEVEL = 3
WINDOW_LOG_MIN, WINDOW_LOG_MAX = 20, 30  # 30 is the limit of `zstd -d --long=30` and of 32-bit devices
LDM_HASH_LOG_MAX = 24  # finds matches anywhere in a reference of hundreds of megabytes


class Reference(NamedTuple):
    """Bytes [start, start + length) of the target, proved to equal `data`."""

    start: int
    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


class Frame(NamedTuple):
    """A delta that produces bytes [start, start + length) of the target. `reference` is None for frames without a
    dictionary, which may be several zstd frames, one after another. `wrong` is the number of these bytes that differ
    from what the target holds."""

    start: int
    length: int
    data: bytes
    reference: Reference | None
    wrong: int


class Window(NamedTuple):
    """Bytes [start, end) of a region, from the first that differs to the last; `wrong` lists the ranges that differ."""

    start: int
    end: int
    wrong: list[Range]

    @property
    def size(self) -> int:
        """Number of bytes that differ."""
        return sum(end - start for start, end in self.wrong)


def frames(region: Region, found: Findings, image: Image, reference: Reference | None) -> Iterator[Frame | Range]:
    """For each window with differences, yield a frame, or the ranges that differ if these are smaller.

    The target may skip blocks of a frame that it already holds correctly.
    """
    if reference is None:
        yield from packed(windows(region, found), image, region.shift)
    else:
        yield from _cut(windows(region, found, WINDOW), image, region.shift, reference)


def windows(region: Region, found: Findings, size: int = PACKED) -> Iterator[Window]:
    """Group what differs into stretches of at most `size` bytes."""
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
    """Yield frames without a reference, joined where they are consecutive, and the ranges that do not shrink when
    packed.
    """
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
    """Whether a window continues the previous ones and their total still fits the memory of a small board."""
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
    """Size in bytes of the frames that turn `old` into `new`, cut as `frames` does when everything differs."""
    encoder = _Encoder(Reference(0, old))
    return sum(len(encoder.encode(new[at : at + WINDOW])) for at in range(0, len(new), WINDOW))


class _Encoder:
    """Compresses windows against one reference."""

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
