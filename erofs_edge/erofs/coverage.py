# SPDX-License-Identifier: Apache-2.0
"""What each byte of an image belongs to: finds overlaps, and bytes that belong to nothing.

Uses one byte of memory per block and one range per inode, whatever the image claims.
"""

from __future__ import annotations

from collections.abc import Iterator

from erofs_edge.erofs.backing import DEVICE_BITS, Backing
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.ondisk import LAYOUT_CHUNK_BASED, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, SUPER_OFFSET

_FREE, _METADATA, _CHUNK, _FLAT, _FLAT_REST, _PCLUSTER, _PCLUSTER_REST = range(7)
_NAMES = ["nothing", "metadata", "a chunk", *["data of a flat file"] * 2, *["a pcluster"] * 2]
_MARKS = {
    LAYOUT_FLAT_PLAIN: (_FLAT, _FLAT_REST),
    LAYOUT_FLAT_INLINE: (_FLAT, _FLAT_REST),
    LAYOUT_CHUNK_BASED: (_CHUNK, _CHUNK),
}


class Coverage:
    """Bytes of metadata and blocks of data seen so far."""

    def __init__(self, size: int, block_size: int, devices: dict[int, int] | None = None) -> None:
        """`devices`: number → blocks of the extra devices. Data on other devices is ignored."""
        self._block = block_size
        self._size = size
        self._marks = bytearray(-(-size // block_size))
        self._devices = {number: bytearray(blocks) for number, blocks in (devices or {}).items()}
        self.has_unaligned = False
        self._ranges: list[tuple[int, int, str]] = []  # start, end, name
        self._shared: set[tuple[int, int]] = set()

    def metadata(self, start: int, size: int, name: str) -> None:
        """Add bytes that belong to a single structure."""
        self._ranges.append((start, start + size, name))
        self._mark_metadata(start, start + size)

    def shared_metadata(self, start: int, size: int, name: str) -> None:
        """Add bytes of a structure to which several others may refer."""
        if (start, size) not in self._shared:
            self._shared.add((start, size))
            self.metadata(start, size, name)

    def _mark_metadata(self, start: int, end: int) -> None:
        first, after = start // self._block, min(-(-end // self._block), len(self._marks))
        if after - first == 1:
            self._marks[first] = _METADATA
        elif after > first:
            self._marks[first:after] = bytes([_METADATA]) * (after - first)

    def metadata_overlaps(self) -> Iterator[tuple[str, int]]:
        """Yield (message, byte address) for structures that share bytes."""
        self._ranges.sort()
        end, name = 0, ""
        for start, stop, other in self._ranges:
            if start < end:
                yield f"{other} overlaps with {name}", start
            if stop > end:
                end, name = stop, other

    def data(self, extent: Extent, layout: int, may_share: bool) -> str | None:
        """Add the blocks of an extent of a file with this layout. Return what they overlap against the rules, or None.

        Pclusters that are not whole blocks are added as metadata, for `metadata_overlaps` to report. Chunks may be
        shared freely; data of flat files and pclusters, from their first block on, if `may_share`. Each block of raw
        bytes in compressed files is a pcluster. On extra devices, flat data may be shared like chunks.
        """
        head, rest = _MARKS.get(layout, (_PCLUSTER, _PCLUSTER_REST))
        if head is _PCLUSTER and extent.kind is Kind.RAW:
            rest = head
        elif head is _FLAT and extent.address >> DEVICE_BITS:
            head = rest = _CHUNK
        if (extent.address | extent.size) % self._block:
            self.has_unaligned = True
            (self.shared_metadata if may_share else self.metadata)(extent.address, extent.size, "a pcluster")
            return None
        device = extent.address >> DEVICE_BITS
        marks = self._devices.get(device) if device else self._marks
        if marks is None:
            return None
        first = (extent.address - (device << DEVICE_BITS)) // self._block
        found = None
        for block in range(first, first + -(-extent.size // self._block)):
            wanted = head if block == first else rest
            mark = marks[block]
            if mark == _FREE:
                marks[block] = wanted
            elif mark != wanted or not may_share:
                found = found or _NAMES[mark]
        return found

    def stray_bytes(self, backing: Backing) -> Iterator[int]:
        """Yield the address of the first non-zero byte in each gap that belongs to nothing."""
        position = SUPER_OFFSET
        inside = sorted(part for part in self._ranges if part[0] < self._size)
        for start, stop, _ in [*inside, (backing.end, backing.end, "")]:
            if start > position:
                stray = self._stray(backing, position, start)
                if stray is not None:
                    yield stray
            position = max(position, stop)

    def _stray(self, backing: Backing, start: int, stop: int) -> int | None:
        """Return the address of the first non-zero byte in [start, stop) outside data blocks."""
        block = self._block
        while start < stop:
            number = start // block
            end = min((number + 1) * block, stop)
            if self._marks[number] in (_FREE, _METADATA):
                data = backing.read(start, end - start, "gap")
                if data.count(0) != len(data):
                    return end - len(data.lstrip(b"\0"))
            start = end
        return None
