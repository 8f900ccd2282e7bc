# SPDX-License-Identifier: Apache-2.0
"""Encode inodes with what follows them, and directory blocks, once everything has its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from erofs_edge.erofs.attributes import icount
from erofs_edge.erofs.directory import Entries
from erofs_edge.erofs.ondisk import (
    COMPACT_INODE,
    EXTENDED_INODE,
    FILE_TYPES,
    FORMAT_EXTENDED,
    FORMAT_NLINK_1,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    LAYOUT_SHIFT,
    NULL_ADDR,
    SLOT_SIZE,
)
from erofs_edge.erofs.plan import NO_BLOCK, Node

_FLAT = (LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE)
_TYPES = bytes([FILE_TYPES.get(kind << 12, 0) for kind in range(256)])
"""dirent type for the file type in the upper bits of a mode"""


def encoded(nodes: Iterable[Node], block_size: int) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yield (byte of the image, bytes) of every inode with what follows it, and of every directory block. What is
    already encoded is taken from its node: many small files consist of nothing else."""
    for node in nodes:
        body = node.body
        if body:
            node.body = b""
        else:
            if node.names:
                blocks = [entries.block() for entries in node.entries or entries_of(node)]
                if node.tail_size:
                    node.tail = bytes(blocks.pop())
                for i, one in enumerate(blocks):
                    yield (node.i_u + i) * block_size, one
            body = encode_node(node)
            node.tail = b""
        yield node.nid * SLOT_SIZE, body


def encode(nodes: Sequence[Node]) -> None:
    """Encode each node's body, independent of its place. The tail becomes part of it."""
    if [True for n in nodes if n.extended or n.xattrs or n.ino or n.i_u >= NULL_ADDR]:
        bodies = [encode_node(node) for node in nodes]
    else:  # the usual case: the same in fewer steps
        pack = COMPACT_INODE.pack
        bodies = [
            pack(
                n.layout << LAYOUT_SHIFT, 0, n.inode.mode, n.links, n.size, n.since,
                n.i_u & NULL_ADDR,  # NO_BLOCK becomes NULL_ADDR
                n.number, n.uid, n.gid, 0,
            ) + n.index + n.tail
            for n in nodes
        ]  # fmt: skip
    for node, body in zip(nodes, bodies, strict=True):
        node.body, node.tail = body, b""


def encode_node(node: Node) -> bytes:
    """Encode an inode with everything that follows it, independent of its place."""
    body = encode_inode(node) + node.xattrs
    if not node.index:
        return body + node.tail
    return body + bytes(-len(body) % node.index_align) + node.index + node.tail


def encode_inode(node: Node) -> bytes:
    """Encode struct erofs_inode_compact or erofs_inode_extended.

    A compact one shows the image's own time; in 48-bit images, seconds after it. The upper bits of a block number are
    in a separate field of extended inodes; in compact inodes with one link, they replace the link count.
    """
    low, high, far = _address(node)
    form = node.layout << LAYOUT_SHIFT
    mode = node.inode.mode
    if node.extended:
        return EXTENDED_INODE.pack(
            form | FORMAT_EXTENDED,
            icount(node.xattrs),
            mode,
            high,
            node.size,
            low,
            (node.ino or node.number) & NULL_ADDR,
            node.uid,
            node.gid,
            node.seconds,
            node.nanoseconds,
            node.links,
        )
    return COMPACT_INODE.pack(
        form | (FORMAT_NLINK_1 if far else 0),
        icount(node.xattrs),
        mode,
        high if far else node.links,
        node.size,
        node.since,
        low,
        (node.ino or node.number) & NULL_ADDR,
        node.uid,
        node.gid,
        0,
    )


def _address(node: Node) -> tuple[int, int, bool]:
    """Return i_u, the field above it, and whether that counts: without it, 32 one bits mean no block."""
    if node.i_u == NO_BLOCK:
        return NULL_ADDR, 0, False
    inode = node.inode
    is_block = node.layout in _FLAT and (inode.is_file or inode.is_dir or inode.is_symlink)
    return node.i_u & NULL_ADDR, node.i_u >> 32, is_block and node.i_u >= NULL_ADDR


def entries_of(node: Node) -> list[Entries]:
    """Return the blocks of a directory, complete except for nids."""
    parent = node.parent
    assert parent is not None  # noqa: S101 - only the root could lack one, and it is its own parent
    names = node.names[0] if len(node.names) == 1 else list(chain.from_iterable(node.names))
    targets = [node, parent, *node.children]
    if names[1] != b"..":
        targets = list(node.children)
        targets.insert(names.index(b"."), node)
        targets.insert(names.index(b".."), parent)
    types = bytes([target.inode.mode >> 12 for target in targets]).translate(_TYPES)
    if len(node.names) == 1:
        return [Entries(names, targets, types)]
    blocks, at = [], 0
    for names in node.names:
        end = at + len(names)
        blocks.append(Entries(names, targets[at:end], types[at:end]))
        at = end
    return blocks
