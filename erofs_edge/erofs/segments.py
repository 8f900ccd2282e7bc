# SPDX-License-Identifier: Apache-2.0
"""A compressed piece of a file, and whether compressing it paid off."""

from __future__ import annotations

from typing import NamedTuple

from erofs_edge.erofs.index import Extent, full_index_size


class Segment(NamedTuple):
    """A compressed piece of a file: its extents, and a chunk for each, in whole blocks unless it is raw.

    An inline tail has 0 blocks and its bytes as the chunk; a fragment has 0 blocks and no chunk; an extent of another
    file has an empty chunk.
    """

    extents: list[Extent]
    chunks: list[bytes | memoryview]

    @property
    def blocks(self) -> int:
        """Number of its own blocks."""
        return sum([extent.blocks for extent in self.extents if extent.place < 0])

    @property
    def inline(self) -> int:
        """Bytes of the inline tail."""
        is_inline = bool(self.extents) and not self.extents[-1].blocks and len(self.chunks) == len(self.extents)
        return len(self.chunks[-1]) if is_inline else 0

    @property
    def fragment(self) -> int:
        """Bytes of content that go to the packed inode."""
        return self.extents[-1].length if len(self.chunks) < len(self.extents) else 0


class JoinedSegment(Segment):
    """A segment of whole blocks without an inline tail or fragment, with a single chunk for all of its extents."""

    __slots__ = ()

    @property
    def inline(self) -> int:
        return 0

    @property
    def fragment(self) -> int:
        return 0


def store_raw(segment: Segment, data: memoryview, block_size: int) -> None:
    """Append uncompressed content as one extent."""
    segment.extents.append(Extent(len(data), -(-len(data) // block_size), True))
    segment.chunks.append(data)


def raw_segment(data: bytes, block_size: int) -> Segment:
    """Return an uncompressed segment."""
    segment = Segment([], [])
    store_raw(segment, memoryview(data), block_size)
    return segment


def whole_fragment(size: int) -> Segment:
    """Return the segment of a file that is entirely in the packed inode."""
    return Segment([Extent(size, 0, False)], [])


def segment_gains(segment: Segment, size: int, block_size: int) -> bool:
    """Whether a file that is one segment is better off compressed. A fragment counts as nothing, as in mkfs.erofs: its
    cost is known only later, and is less than the block or the inline tail that it would otherwise need."""
    return segment.fragment == size or gains(size, segment.blocks, block_size, segment.inline)


def gains(size: int, blocks: int, block_size: int, inline: int = 0) -> bool:
    """Whether `blocks` blocks, an index and an inline tail take less than a file's own `size` bytes."""
    return blocks * block_size + inline + full_index_size(size, block_size.bit_length() - 1) < size
