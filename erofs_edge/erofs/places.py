# SPDX-License-Identifier: Apache-2.0
"""Where each part goes in the packed inode: in the order of the tree, or where an older image has it.

Compressible and incompressible parts are in separate blocks, so that they are never cut together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from erofs_edge.erofs.anchors import OldExtent

SOFT, DENSE = 1, 2


class OldPacked(NamedTuple):
    """The packed inode of an older image.

    size     bytes
    extents  in order
    parts    (sha256, length) of what files have there → offsets, in order; several if equal bytes are there more than
             once
    paths    path → (offset, length)
    """

    size: int
    extents: Sequence[OldExtent]
    parts: Mapping[tuple[bytes, int], Sequence[int]]
    paths: Mapping[bytes, tuple[int, int]]


class Wanted(NamedTuple):
    """A part that needs a place: its bytes, whether it is incompressible, its sha256, and the path it belongs to."""

    length: int
    dense: bool
    digest: bytes
    path: bytes


class Region(NamedTuple):
    """Bytes [start, end) that are compressible, or (dense) not; whole blocks except for the last one."""

    start: int
    end: int
    dense: bool


def place_in_order(parts: Sequence[Wanted], block_size: int, start: int = 0) -> tuple[list[int], int]:
    """Return (the offset of each, the end): compressible parts from byte `start` on, the others from a block on."""
    offsets, at = [0] * len(parts), start
    for dense in (False, True):
        if dense and any(part.dense for part in parts):
            # no extent may start in the same cluster as the last one of the compressed area
            at += -at % block_size
        for number, part in enumerate(parts):
            if part.dense == dense:
                offsets[number] = at
                at += part.length
    return offsets, at


def place_as_before(parts: Sequence[Wanted], old: OldPacked, block_size: int) -> tuple[list[int], int]:
    """Return (the offset of each, the end): equal bytes stay, then parts of the same path that still fit. The others
    fill the gaps, largest first, each in the smallest that suffices, or follow at the end."""
    offsets = [_where_equal(part, old) for part in parts]
    taken = Ranges([(at, at + part.length) for at, part in zip(offsets, parts, strict=True) if at >= 0])
    for number, part in enumerate(parts):
        at, length = old.paths.get(part.path, (-1, 0))
        if offsets[number] < 0 <= at and part.length <= length and taken.take(at, at + part.length):
            offsets[number] = at
    _fill_gaps(parts, offsets, taken, block_size)
    left = [number for number, at in enumerate(offsets) if at < 0]
    end = taken.end
    if not left:
        return offsets, end
    kinds = _kinds(parts, offsets, block_size)
    if end and kinds[(end - 1) // block_size] & DENSE:
        end += -end % block_size
    found, end = place_in_order([parts[number] for number in left], block_size, end)
    for number, at in zip(left, found, strict=True):
        offsets[number] = at
    return offsets, end


def _where_equal(part: Wanted, old: OldPacked) -> int:
    """Return where the old image has the same bytes: for the same path if possible, else the first place; -1 if
    nowhere."""
    equal = old.parts.get((part.digest, part.length), (-1,))
    own = old.paths.get(part.path)
    return own[0] if own is not None and own[0] in equal else equal[0]


def _fill_gaps(parts: Sequence[Wanted], offsets: list[int], taken: Ranges, block_size: int) -> None:
    """Put new parts into gaps, soft ones only next to soft ones, dense ones only next to dense ones."""
    kinds = _kinds(parts, offsets, block_size)
    room: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for start, end in taken.gaps():
        near = kinds[end // block_size] | (kinds[(start - 1) // block_size] if start else 0)
        if near & (SOFT | DENSE) != SOFT | DENSE:
            room[near == DENSE].append((end - start, start))
    for holes in room.values():
        holes.sort()
    new = [number for number, at in enumerate(offsets) if at < 0]
    for number in sorted(new, key=lambda number: -parts[number].length):
        part = parts[number]
        holes = room[part.dense]
        found = bisect_left(holes, (part.length, 0))
        if found == len(holes):
            continue
        size, at = holes.pop(found)
        if size > part.length:
            insort(holes, (size - part.length, at + part.length))
        offsets[number] = at
        taken.take(at, at + part.length)


def regions(parts: Sequence[Wanted], offsets: Sequence[int], size: int, block_size: int) -> list[Region]:
    """Return compressible and incompressible regions. A block with some of both, or with nothing, is compressible."""
    found: list[Region] = []
    for block, kind in enumerate(_kinds(parts, offsets, block_size)):
        start, end = block * block_size, min((block + 1) * block_size, size)
        if start >= size:
            break
        if found and found[-1].dense == (kind == DENSE):
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Region(start, end, kind == DENSE))
    return found


def _kinds(parts: Sequence[Wanted], offsets: Sequence[int], block_size: int) -> bytearray:
    """Return SOFT and DENSE bits for each block, as far as parts are placed; one block more than they touch."""
    ends = [at + part.length for at, part in zip(offsets, parts, strict=True) if at >= 0]
    kinds = bytearray(max(ends, default=0) // block_size + 2)
    for at, part in zip(offsets, parts, strict=True):
        if at < 0:
            continue
        first, last = at // block_size, (at + part.length - 1) // block_size
        kind = DENSE if part.dense else SOFT
        kinds[first] |= kind
        kinds[last] |= kind
        if last - first > 1:
            kinds[first + 1 : last] = bytes([kind]) * (last - first - 1)
    return kinds


class Ranges:
    """Byte ranges in use."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """The ranges (start, end) may overlap."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(ranges):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    @property
    def end(self) -> int:
        """The end of the last range."""
        return self._ends[-1] if self._ends else 0

    def take(self, start: int, end: int) -> bool:
        """Mark these bytes as used. Return False, changing nothing, if one of them is used already."""
        number = bisect_right(self._starts, start)
        if number and self._ends[number - 1] > start:
            return False
        if number < len(self._starts) and self._starts[number] < end:
            return False
        self._starts.insert(number, start)
        self._ends.insert(number, end)
        return True

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the gaps between ranges, in order; nothing after the last one."""
        for start, end in zip([0, *self._ends], self._starts, strict=False):
            if start < end:
                yield start, end

    def within(self, start: int, end: int) -> int:
        """Count the used bytes in [start, end)."""
        number = max(0, bisect_right(self._starts, start) - 1)
        used = 0
        while number < len(self._starts) and self._starts[number] < end:
            used += max(0, min(end, self._ends[number]) - max(start, self._starts[number]))
            number += 1
        return used
