# SPDX-License-Identifier: Apache-2.0
"""Images assembled by hand, for what no mkfs.erofs writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from erofs_edge.erofs import ondisk

BLOCK = 4096
SLOT = 128  # bytes from one inode to the next


class Made(NamedTuple):
    """An inode: inline content, or `size` bytes from a data block on (counted from the first data block)."""

    mode: int
    nlink: int
    inline: bytes = b""
    block: int = -1
    size: int = 0


def nid(number: int) -> int:
    """Return the number of the inode at a position in the list."""
    return number * SLOT // 32


def directory(entries: list[tuple[bytes, int, int]]) -> bytes:
    """Return a directory block of (name, position of the inode, file type), which must be sorted."""
    offset = len(entries) * ondisk.DIRENT_SIZE
    head = b""
    for name, number, kind in entries:
        head += ondisk.DIRENT.pack(nid(number), offset, kind)
        offset += len(name)
    return head + b"".join(name for name, _, _ in entries)


def build(path: Path, inodes: list[Made], blocks: list[bytes]) -> Path:
    """Build an image: superblock in block 0, data blocks, then inodes, of which the first is the root. No checksum."""
    meta = 1 + len(blocks)
    area = bytearray(-(-len(inodes) * SLOT // BLOCK) * BLOCK)
    for number, made in enumerate(inodes):
        layout = ondisk.LAYOUT_FLAT_INLINE if made.inline else ondisk.LAYOUT_FLAT_PLAIN
        size = len(made.inline) or made.size
        address = 1 + made.block if made.block >= 0 else ondisk.NULL_ADDR
        record = ondisk.COMPACT_INODE.pack(
            layout << ondisk.LAYOUT_SHIFT, 0, made.mode, made.nlink, size, 0, address, number + 1, 0, 0, 0
        )
        area[number * SLOT : number * SLOT + len(record) + len(made.inline)] = record + made.inline
    count = meta + len(area) // BLOCK
    raw = ondisk.Superblock(blocks_lo=count, meta_blkaddr=meta, inos=len(inodes))
    first = bytearray(BLOCK)
    first[ondisk.SUPER_OFFSET : ondisk.SUPER_OFFSET + ondisk.SUPER_SIZE] = ondisk.SUPERBLOCK.pack(*raw)
    path.write_bytes(bytes(first) + b"".join(block.ljust(BLOCK, b"\0") for block in blocks) + bytes(area))
    return path
