# SPDX-License-Identifier: Apache-2.0
"""The packed inode: the ends of files, and whole ones, put together as one file that is compressed as such.

What compresses comes first, in the order of the tree; what does not stands behind it as it is, so that it neither
costs time nor interrupts the compression of its neighbours. Equal parts are there once. Content is not kept: parts
are read again when the packed inode is compressed, like any file, piece by piece.
"""

from __future__ import annotations

import hashlib
import stat
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.erofs.contents import PIECE, read_piece
from erofs_edge.erofs.pipeline import Piece
from erofs_edge.erofs.plan import UINT32, Node, Plan
from erofs_edge.errors import SourceError
from erofs_edge.tree import BytesContent, Content, Inode

MODE = stat.S_IFREG


class Part(NamedTuple):
    """Bytes [offset, offset + length) of a content; `digest` is their sha256, or empty if they were not read yet."""

    content: Content
    offset: int
    length: int
    where: str
    digest: bytes = b""


class PackedContent:
    """Parts one after the other."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._ends = []
        self.size = 0
        for part in parts:
            self.size += part.length
            self._ends.append(self.size)

    def read(self, offset: int, length: int) -> bytes:
        """Raises SourceError where a part is not what it was when it was chosen."""
        end = min(offset + length, self.size)
        found = []
        number = bisect_right(self._ends, offset)
        while offset < end:
            part = self._parts[number]
            start = self._ends[number] - part.length
            first, last = offset - start, min(end - start, part.length)
            found.append(_read(part, first, last))
            offset = start + last
            number += 1
        return b"".join(found)


class Packer:
    """Collects parts. They are named by number until `close` has given each its place in `offsets`."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._parts: list[Part] = []
        self._dense: list[bool] = []
        self._known: dict[tuple[bytes, int], int] = {}
        self.offsets: list[int] = []
        self._dense_at = 0
        self.content = PackedContent([])

    def add(self, part: Part, *, dense: bool) -> int:
        """The number of a part, or of an equal one. `dense` ones do not compress."""
        number = len(self._parts)
        if part.digest:
            number = self._known.setdefault((part.digest, part.length), number)
        if number == len(self._parts):
            self._parts.append(part)
            self._dense.append(dense)
        return number

    def close(self) -> None:
        """All parts are known: set `content` and `offsets`."""
        soft = [n for n, dense in enumerate(self._dense) if not dense]
        hard = [n for n, dense in enumerate(self._dense) if dense]
        parts = [self._parts[n] for n in soft]
        end = sum(part.length for part in parts)
        # no extent may start in the cluster in which the last one of the compressed area does
        padding = -end % self._block_size if hard else 0
        if padding:
            parts.append(Part(BytesContent(bytes(padding)), 0, padding, ""))
        self._dense_at = end + padding
        parts += [self._parts[n] for n in hard]
        self.offsets = [0] * len(self._parts)
        offset = 0
        for number in soft:
            self.offsets[number] = offset
            offset += self._parts[number].length
        offset = self._dense_at
        for number in hard:
            self.offsets[number] = offset
            offset += self._parts[number].length
        self.content = PackedContent(parts)

    def pieces(self, node: Node) -> Iterator[Piece]:
        """The pieces of the packed inode, no extent of which reaches from what compresses into what does not."""
        for start, end, soft in ((0, self._dense_at, True), (self._dense_at, self.content.size, False)):
            for offset in range(start, end, PIECE):
                yield Piece(node, offset, min(PIECE, end - offset), packed=soft)


def add_packed_node(plan: Plan, packer: Packer) -> Node:
    """The packed inode, with the image's own time; it has no name."""
    inode = Inode(MODE, content=packer.content)
    node = Node(inode, b"(packed inode)", len(plan.nodes) + 1, None, seconds=plan.epoch, nanoseconds=plan.epoch_ns)
    node.size = packer.content.size
    node.extended = node.size > UINT32
    plan.nodes.append(node)
    plan.packed = node
    return node


def _read(part: Part, first: int, last: int) -> bytes:
    if not part.digest:
        return read_piece(part.content, part.offset + first, last - first, part.where)
    data = read_piece(part.content, part.offset, part.length, part.where)
    if hashlib.sha256(data).digest() != part.digest:
        raise SourceError("file changed while it was being read", where=part.where)
    return data[first:last]
