# SPDX-License-Identifier: Apache-2.0
"""Bytes of inodes with what follows them, and of directory blocks, once everything has its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from erofs_edge.erofs.attributes import icount
from erofs_edge.erofs.directory import encode_block
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

Write = Callable[[int, bytes], None]
_pack_compact = COMPACT_INODE.pack
_FLAT = (LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE)


def write_nodes(nodes: Iterable[Node], block_size: int, write: Write) -> None:
    """Call write(offset, bytes) for every inode and every directory block."""
    for node in nodes:
        tail = node.tail
        if node.names:
            blocks = [_directory_block(node, names) for names in node.names]
            if node.tail_size:
                tail = blocks.pop()
            for i, one in enumerate(blocks):
                write((node.i_u + i) * block_size, one)
        write(node.nid * SLOT_SIZE, node.body or encode_node(node, tail))


def encode_node(node: Node, tail: bytes) -> bytes:
    """An inode with all that follows it, wherever it may stand; `tail` is what is inline."""
    block, xattrs = node.i_u, node.xattrs
    if node.extended or block >= NULL_ADDR:
        body = encode_inode(node)
    else:  # as most are: the same in fewer steps
        body = _pack_compact(
            node.layout << LAYOUT_SHIFT,
            icount(xattrs) if xattrs else 0,
            node.inode.mode,
            node.links,
            node.size,
            node.since,
            block if block != NO_BLOCK else NULL_ADDR,
            (node.ino or node.number) & NULL_ADDR,
            node.uid,
            node.gid,
            0,
        )
    if not node.index:
        return body + xattrs + tail
    body += xattrs
    return body + bytes(-len(body) % node.index_align) + node.index + tail


def encode_inode(node: Node) -> bytes:
    """struct erofs_inode_compact or erofs_inode_extended.

    A compact one shows the image's own time, in 48-bit images seconds after it. The upper bits of a block number stand
    in a field of extended inodes, and in place of the links of compact ones that have one.
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
    """i_u, the field above it, and whether that counts: 32 ones are no block without it."""
    if node.i_u == NO_BLOCK:
        return NULL_ADDR, 0, False
    inode = node.inode
    is_block = node.layout in _FLAT and (inode.is_file or inode.is_dir or inode.is_symlink)
    return node.i_u & NULL_ADDR, node.i_u >> 32, is_block and node.i_u >= NULL_ADDR


def _directory_block(node: Node, names: list[bytes]) -> bytes:
    children, parent = node.children, node.parent
    assert parent is not None  # noqa: S101 - only the root's could be missing, and it is its own
    targets = [children.get(name) or (node if name == b"." else parent) for name in names]
    types = [FILE_TYPES[target.inode.mode & 0o170000] for target in targets]
    return encode_block(names, [target.nid for target in targets], types)
