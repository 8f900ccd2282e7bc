# SPDX-License-Identifier: Apache-2.0
"""Bytes of inodes with what follows them, and of directory blocks, once everything has its place."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable

from erofs_edge.erofs.attributes import icount
from erofs_edge.erofs.directory import encode_block
from erofs_edge.erofs.ondisk import (
    COMPACT_INODE,
    EXTENDED_INODE,
    FILE_TYPES,
    FORMAT_EXTENDED,
    LAYOUT_SHIFT,
    NULL_ADDR,
    SLOT_SIZE,
)
from erofs_edge.erofs.plan import Node

Write = Callable[[int, bytes], None]


def write_nodes(nodes: Iterable[Node], block_size: int, write: Write) -> None:
    """Call write(offset, bytes) for every inode and every directory block."""
    for node in nodes:
        tail = node.tail
        if node.inode.is_dir:
            blocks = [_directory_block(node, names) for names in node.names]
            if node.tail_size:
                tail = blocks.pop()
            for i, block in enumerate(blocks):
                write((node.i_u + i) * block_size, block)
        body = encode_inode(node) + node.xattrs
        if node.index:
            body += bytes(-len(body) % node.index_align) + node.index
        write(node.nid * SLOT_SIZE, body + tail)


def encode_inode(node: Node) -> bytes:
    """struct erofs_inode_compact or erofs_inode_extended. A compact one shows the image's own time."""
    form = node.layout << LAYOUT_SHIFT
    mode = node.inode.mode
    if node.extended:
        return EXTENDED_INODE.pack(
            form | FORMAT_EXTENDED,
            icount(node.xattrs),
            mode,
            0,
            node.size,
            node.i_u,
            (node.ino or node.number) & NULL_ADDR,
            node.uid,
            node.gid,
            node.seconds,
            node.nanoseconds,
            node.links,
        )
    return COMPACT_INODE.pack(
        form,
        icount(node.xattrs),
        mode,
        node.links,
        node.size,
        0,
        node.i_u,
        (node.ino or node.number) & NULL_ADDR,
        node.uid,
        node.gid,
        0,
    )


def _directory_block(node: Node, names: list[bytes]) -> bytes:
    def entry(name: bytes) -> tuple[int, int]:
        target: Node | None
        if name == b".":
            target = node
        elif name == b"..":
            target = node.parent
        else:
            target = node.children[name]
        assert target is not None  # noqa: S101 - only the root's parent could be missing, and it is its own
        return target.nid, FILE_TYPES[stat.S_IFMT(target.inode.mode)]

    return encode_block(names, entry)
