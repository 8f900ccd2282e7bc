# SPDX-License-Identifier: Apache-2.0
"""Extents that refer to pclusters of earlier files (kernel: 6.1, ``Z_EROFS_LI_PARTIAL_REF``).

An extent may use any earlier pcluster from its first byte on, entirely or in part. So where a file repeats bytes of an
earlier one (repeats.py), it refers to the extents that start within them, and only the rest is cut; the earlier file is
cut where such bytes start. A file waits for those that it repeats: they come first in the order in which pieces are
cut, so there are no cycles.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.repeats import Key, Repeat, Repeats
from erofs_edge.erofs.segments import Segment

NUMBER_SHIFT = 32  # until an extent is placed, its `place` is its piece's number (upper bits) and block (lower bits)
WORTH = 4  # minimum content in blocks that a file must repeat from one place

Cut = Callable[[bytes, int], Segment | None]
Finish = Callable[[bytes], Segment]


class _Entry(NamedTuple):
    """An extent of a piece that others may use. `start` is its byte in the file; `place`: see NUMBER_SHIFT."""

    start: int
    extent: Extent


class Shares:
    """The extents of the pieces that others repeat. Used by all threads."""

    def __init__(self, repeats: Repeats, block_size: int) -> None:
        self._repeats = repeats
        self._block_size = block_size
        self._entries: dict[Key, list[_Entry]] = {key: [] for key in repeats.numbers}
        self._done = {key: threading.Event() for key in repeats.numbers}

    def touches(self, key: Key) -> bool:
        """Whether a piece repeats others or is repeated."""
        return key in self._repeats.found or key in self._entries

    def finish(self, key: Key, *, compressed: bool) -> None:
        """A piece has been cut, or will not be: those waiting for it may go on. Only compressed ones can be shared."""
        if key in self._entries:
            if not compressed:
                self._entries[key] = []
            self._done[key].set()

    def cut(self, key: Key, data: bytes, cut: Cut, finish: Finish) -> Segment:
        """Cut a piece: references, and the rest by `cut` (if another extent follows) and `finish` (the end)."""
        offset = key[1]
        segment = Segment([], [])
        cuts = self._repeats.cuts.get(key, [])
        at = 0
        for repeat in self._repeats.found.get(key, ()):
            for start, references in self._candidates(key, repeat, offset + at):
                between = self._between(data, at, start - offset, offset, cuts, cut)
                if between is None:
                    continue
                for one, begin in between:
                    self._append(key, segment, one, begin)
                self._append(key, segment, Segment(references, [b""] * len(references)), start)
                at = start - offset + sum(extent.length for extent in references)
                break
        if at < len(data):
            points = [point for point in cuts if point >= at + 2 * self._block_size]
            for point in points:
                part = cut(data[at:point], (offset + at) % self._block_size)
                if part is not None:
                    self._append(key, segment, part, offset + at)
                    at = point
            self._append(key, segment, finish(data[at:]), offset + at)
        return segment

    def _between(
        self, data: bytes, at: int, end: int, offset: int, cuts: list[int], cut: Cut
    ) -> list[tuple[Segment, int]] | None:
        """Cut the bytes before a reference at the points that others repeat; None if that is not possible."""
        room = 2 * self._block_size
        parts = []
        points = [point for point in cuts if at + room <= point <= end - room]
        for point in [*points, end] if at < end else []:
            part = cut(data[at:point], (offset + at) % self._block_size)
            if part is not None:
                parts.append((part, offset + at))
                at = point
        return parts if at == end else None

    def _append(self, key: Key, segment: Segment, part: Segment, start: int) -> None:
        if key in self._entries:
            number = self._repeats.numbers[key] << NUMBER_SHIFT
            own = segment.blocks
            for extent in part.extents:
                if extent.blocks:
                    place = extent.place if extent.place >= 0 else number | own
                    self._entries[key].append(_Entry(start, extent._replace(place=place)))
                start += extent.length
                own += extent.own
        segment.extents.extend(part.extents)
        segment.chunks.extend(part.chunks)

    def _candidates(self, key: Key, repeat: Repeat, at: int) -> Iterator[tuple[int, list[Extent]]]:
        """Yield (byte of the file, extents from there on) of what can be referred to after byte `at` of the file."""
        shift = repeat.start - repeat.source_start
        entries = self._sources(key, repeat)
        for i, entry in enumerate(entries):
            start = entry.start + shift
            if start != at and start < at + 2 * self._block_size:
                continue
            references = list(self._references(entries[i:], shift, start, repeat.start + repeat.length))
            if sum(extent.length for extent in references) >= WORTH * self._block_size:
                yield start, references

    def _references(self, entries: list[_Entry], shift: int, at: int, end: int) -> Iterator[Extent]:
        """Yield consecutive extents up to byte `end`, the last one in part. None is too short for an index."""
        block_size = self._block_size
        for entry in entries:
            extent = entry.extent
            length = min(extent.length, end - at)
            if extent.raw:
                length -= length % block_size
            least = 2 * block_size if extent.blocks > 1 and not extent.raw else block_size
            if entry.start + shift != at or length < least:
                return
            if extent.raw:
                yield extent._replace(length=length, blocks=length // block_size)
            else:
                yield extent._replace(length=length, partial=extent.partial or length < extent.length)
            at += length
            if length < extent.length:
                return

    def _sources(self, key: Key, repeat: Repeat) -> list[_Entry]:
        """Return the extents that start within the repeated bytes."""
        found: list[_Entry] = []
        end = repeat.source_start + repeat.length
        for offset in range(repeat.source_start // PIECE * PIECE, end, PIECE):
            other = repeat.source, offset
            if other not in self._entries:
                continue
            if other != key:
                self._done[other].wait()
            entries = self._entries[other]
            first = bisect_left(entries, repeat.source_start, key=lambda entry: entry.start)
            last = bisect_left(entries, end, key=lambda entry: entry.start)
            found += entries[first:last]
        return found


def place_extent(extent: Extent, bases: dict[int, int]) -> Extent:
    """Resolve an extent's place, given the first block of each piece by number."""
    if extent.place < 0:
        return extent
    number, block = extent.place >> NUMBER_SHIFT, extent.place & (1 << NUMBER_SHIFT) - 1
    return extent._replace(place=bases[number] + block)
