# SPDX-License-Identifier: Apache-2.0
"""The packed inode: the ends of files, and whole ones, assembled into one file that is compressed as a whole.

Compressible content comes first, in the order of the tree. Incompressible content follows uncompressed, so that it
neither costs time nor interrupts the compression of its neighbours (places.py, also for images that replace older
ones). Equal parts are stored once. Content is not kept in memory: parts are read again when the packed inode is
compressed, piece by piece like any file.
"""

from __future__ import annotations

import hashlib
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator
from io import BytesIO
from itertools import accumulate
from typing import NamedTuple

from erofs_edge.erofs.contents import PIECE, read_piece
from erofs_edge.erofs.piece import Piece
from erofs_edge.erofs.places import OldPacked, Ranges, Region, Wanted, place_as_before, place_in_order, regions
from erofs_edge.erofs.plan import PACKED_PATH, UINT32, Node, Plan
from erofs_edge.errors import SourceError
from erofs_edge.tree import Content, Inode

MODE = stat.S_IFREG
DENSE_PIECE = 64 << 10  # bytes of incompressible content that keep or lose their place together


class Part(NamedTuple):
    """Bytes [offset, offset + length) of a content. `digest` is their sha256, or empty if they have not been read yet.
    `path` is the file's."""

    content: Content
    offset: int
    length: int
    where: str
    digest: bytes = b""
    path: bytes = b""


class PackedContent:
    """Parts at their places, in a content of `size` bytes, with zeros in between."""

    def __init__(self, placed: Iterable[tuple[int, Part]] = (), size: int = 0) -> None:
        """`placed` are (offset, part). Parts may overlap where their bytes are equal."""
        self._placed = sorted(placed, key=lambda one: one[0])
        self._reach = list(accumulate((at + part.length for at, part in self._placed), max))
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Raises SourceError if a part has changed since it was chosen."""
        end = min(offset + length, self.size)
        found = BytesIO()  # joining a list of parts would take twice the memory, in every thread
        for number in range(bisect_right(self._reach, offset), len(self._placed)):
            start, part = self._placed[number]
            if start >= end or offset >= end:
                break
            if start > offset:
                found.write(bytes(start - offset))
                offset = start
            last = min(end, start + part.length)
            if last > offset:
                found.write(_read(part, offset - start, last - start))
                offset = last
        if offset < end:
            found.write(bytes(end - offset))
        return found.getvalue()


class Packer:
    """Collects parts. They are identified by number until `close` sets each one's place in `offsets`."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._parts: list[Part] = []
        self._dense: list[bool] = []
        self._known: dict[tuple[bytes, int], int] = {}
        self._regions: list[Region] = []
        self._old: OldPacked | None = None
        self.used = Ranges()
        self.offsets: list[int] = []
        self.content = PackedContent()

    def add(self, part: Part, *, dense: bool) -> int:
        """Return the number of a part, or of an equal one. `dense` parts do not compress."""
        number = len(self._parts)
        if part.digest:
            number = self._known.setdefault((part.digest, part.length), number)
        if number == len(self._parts):
            self._parts.append(part)
            self._dense.append(dense)
        return number

    def close(self, old: OldPacked | None = None) -> None:
        """All parts are known: set `content`, `offsets` and `used`, the bytes that belong to parts. With `old`, what is
        there keeps its place. May be called again."""
        self._old = old
        if old is None:
            wanted = self._wanted(frozenset())
            self.offsets, size = place_in_order(wanted, self._block_size)
        else:
            wanted = self._wanted({length for _, length in old.parts})
            self.offsets, size = place_as_before(wanted, old, self._block_size)
        self.content = PackedContent(zip(self.offsets, self._parts, strict=True), size)
        self.used = Ranges([(at, at + part.length) for at, part in zip(self.offsets, self._parts, strict=True)])
        self._regions = regions(wanted, self.offsets, size, self._block_size)

    @property
    def gaps(self) -> int:
        """Bytes that belong to no part, except those between compressible and incompressible content."""
        return sum(
            end - start for start, end in self.used.gaps() if end % self._block_size or end - start > self._block_size
        )

    def pieces(self, node: Node) -> Iterator[Piece]:
        """Yield the pieces of the packed inode. No extent crosses from compressible to incompressible content."""
        old = self._old.extents if self._old is not None else ()
        for region in self._regions:
            step = DENSE_PIECE if self._old is not None and region.dense else PIECE
            at = region.start
            while at < region.end:
                stop = min(region.end, (at // step + 1) * step)
                first = bisect_left(old, at, key=lambda one: one.start)
                last = bisect_left(old, stop, key=lambda one: one.start)
                yield Piece(node, at, stop - at, packed=not region.dense, old=old[first:last])
                at = stop

    def _wanted(self, hashed: Container[int]) -> list[Wanted]:
        """Return what determines the places. Parts with `hashed` lengths are read if their sha256 is not known."""
        return [
            Wanted(part.length, dense, part.digest or (_digest(part) if part.length in hashed else b""), part.path)
            for part, dense in zip(self._parts, self._dense, strict=True)
        ]


def add_packed_node(plan: Plan, packer: Packer, ino: int = 0) -> Node:
    """Add the packed inode, which has the image's own time and no name. Its i_ino is `ino`, or the next number."""
    inode = Inode(MODE, content=packer.content)
    node = Node(inode, PACKED_PATH, len(plan.nodes) + 1, None, seconds=plan.epoch, nanoseconds=plan.epoch_ns, ino=ino)
    plan.nodes.append(node)
    plan.packed = node
    set_packed_content(node, packer)
    return node


def set_packed_content(node: Node, packer: Packer) -> None:
    """Update the node with the packer's content after the packer was closed again."""
    node.inode.content = packer.content
    node.size = packer.content.size
    node.extended = node.size > UINT32


def _digest(part: Part) -> bytes:
    state = hashlib.sha256()
    for at in range(part.offset, part.offset + part.length, PIECE):
        state.update(read_piece(part.content, at, min(PIECE, part.offset + part.length - at), part.where))
    return state.digest()


def _read(part: Part, first: int, last: int) -> bytes:
    if not part.digest:
        return read_piece(part.content, part.offset + first, last - first, part.where)
    data = read_piece(part.content, part.offset, part.length, part.where)
    if hashlib.sha256(data).digest() != part.digest:
        raise SourceError("file changed while it was being read", where=part.where)
    return data[first:last]
