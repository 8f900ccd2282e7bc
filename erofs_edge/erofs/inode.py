# SPDX-License-Identifier: Apache-2.0
"""Read one on-disk inode.

Sources: ``fs/erofs/inode.c`` (erofs_read_inode) and ``erofs_fs.h``; devices as ``new_decode_dev`` does.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import METABOX, Backing, broken
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import ErofsFormatError

LAYOUT_NAMES = {
    ondisk.LAYOUT_FLAT_PLAIN: "flat plain",
    ondisk.LAYOUT_COMPRESSED_FULL: "compressed full",
    ondisk.LAYOUT_FLAT_INLINE: "flat inline",
    ondisk.LAYOUT_COMPRESSED_COMPACT: "compressed compact",
    ondisk.LAYOUT_CHUNK_BASED: "chunk-based",
}
_KNOWN_FORMAT = ondisk.FORMAT_EXTENDED | ondisk.LAYOUT_MASK << ondisk.LAYOUT_SHIFT
NULL_BLOCK = -1
_XATTR_AREA_BASE = ondisk.XATTR_HEADER.size
_COMPRESSED = (ondisk.LAYOUT_COMPRESSED_FULL, ondisk.LAYOUT_COMPRESSED_COMPACT)


class DiskInode(NamedTuple):
    """An inode as stored on disk.

    offset      byte address in the image
    xattr_size  size of the xattr area in bytes, 0 if there is none
    size        size of the content in bytes
    mtime_ns    nanoseconds since 1970
    u           the i_u field: chunk format or device number
    block       first block, or number of compressed blocks: i_u with its high 16 bits; NULL_BLOCK if there is no data
                at all
    dot_omitted  whether a directory has no "." entry
    """

    nid: int
    offset: int
    extended: bool
    layout: int
    xattr_size: int
    mode: int
    nlink: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    u: int
    ino: int
    block: int = 0
    dot_omitted: bool = False

    @property
    def header_size(self) -> int:
        return ondisk.EXTENDED_SIZE if self.extended else ondisk.COMPACT_SIZE

    @property
    def body(self) -> int:
        """Byte address of what follows the xattr area: inline tail, map header or chunk table (not aligned)."""
        return self.offset + (ondisk.EXTENDED_SIZE if self.extended else ondisk.COMPACT_SIZE) + self.xattr_size

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_compressed(self) -> bool:
        return self.layout in _COMPRESSED

    @property
    def rdev(self) -> tuple[int, int]:
        """(major, minor) for device nodes, else (0, 0)."""
        if not (stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)):
            return 0, 0
        return self.u >> 8 & 0xFFF, self.u & 0xFF | self.u >> 12 & 0xFFF00


# creating one with its own constructor takes longer than the rest of parsing it
_disk_inode: Callable[[tuple[Any, ...]], DiskInode] = partial(tuple.__new__, DiskInode)
_USUAL_FORMATS = {
    layout << ondisk.LAYOUT_SHIFT | bit: (layout, bool(bit), False)
    for layout in LAYOUT_NAMES
    for bit in (0, ondisk.FORMAT_EXTENDED)
}
"""i_format → (data layout, extended, False), in images without 48-bit addresses and in most inodes of others"""


def inode_offset(info: SuperInfo, nid: int) -> int:
    """Return the byte address of an inode. It may lie outside the image."""
    if nid >> 63:
        return METABOX + ((nid & (1 << 63) - 1) << ondisk.SLOT_BITS)
    return (info.raw.meta_blkaddr << info.raw.blkszbits) + (nid << ondisk.SLOT_BITS)


def read_inode(backing: Backing, info: SuperInfo, nid: int) -> DiskInode:
    """Read inode `nid` and check all that can be checked without other structures. Raises ErofsFormatError."""
    raw, offset = info.raw, inode_offset(info, nid)
    if nid >> 63 and not info.metabox_nid:
        raise broken(f"nid {nid:#x} is in a metabox, which this image does not have", offset - METABOX)
    fields = backing.unpack(ondisk.COMPACT_INODE, offset, "inode")
    wide = raw.feature_incompat & ondisk.INCOMPAT_48BIT
    layout, extended, flag = _USUAL_FORMATS.get(fields[0]) or _parse_format(fields[0], bool(wide), nid, offset)
    directory = stat.S_ISDIR(fields[2])
    block_bits, high = 32, 0
    if extended:
        _, icount, mode, high, size, u, ino, uid, gid, seconds, nsec, nlink = backing.unpack(
            ondisk.EXTENDED_INODE, offset, "inode"
        )
        if wide:
            block_bits = 48
        elif high:
            raise broken(f"inode {nid}: 48-bit block address in an image without them", offset + 6)
        if nsec >= 1_000_000_000:
            raise broken(f"inode {nid}: {nsec} nanoseconds are more than a second", offset + 40)
    else:
        _, icount, mode, nlink, size, seconds, u, ino, uid, gid, _ = fields
        seconds, nsec = info.epoch + seconds, raw.fixed_nsec
        if flag and not directory:
            nlink, high, block_bits = 1, nlink, 48
    if size >> 63 or icount == 1 or not -(1 << 63) <= seconds < 1 << 63 or stat.S_IFMT(mode) not in ondisk.FILE_TYPES:
        raise _impossible(nid, offset, seconds, mode, size)
    xattr_size = _XATTR_AREA_BASE + 4 * (icount - 1) if icount else 0
    block = u | high << 32
    if block == (1 << block_bits) - 1:
        block = NULL_BLOCK
    if offset + (ondisk.EXTENDED_SIZE if extended else ondisk.COMPACT_SIZE) + xattr_size > backing.end_of(offset):
        raise broken(f"inode {nid}: xattr area of {xattr_size} bytes ends outside the image", offset)
    return _disk_inode((
        nid, offset, extended, layout, xattr_size, mode, nlink, size, seconds * 1_000_000_000 + nsec, uid, gid, u, ino,
        block, flag and directory,
    ))  # fmt: skip


def _parse_format(i_format: int, wide: bool, nid: int, offset: int) -> tuple[int, bool, bool]:
    """Split i_format into (data layout, extended, the bit for one link or no dot)."""
    if i_format & ~(_KNOWN_FORMAT | ondisk.FORMAT_NLINK_1 if wide else _KNOWN_FORMAT):
        raise broken(f"inode {nid}: unknown bits in i_format {i_format:#x}", offset)
    layout = i_format >> ondisk.LAYOUT_SHIFT & ondisk.LAYOUT_MASK
    if layout not in LAYOUT_NAMES:
        raise broken(f"inode {nid}: data layout {layout} is not defined", offset)
    return layout, bool(i_format & ondisk.FORMAT_EXTENDED), bool(i_format & ondisk.FORMAT_NLINK_1)


def _impossible(nid: int, offset: int, seconds: int, mode: int, size: int) -> ErofsFormatError:
    """Return the error for the fields of an inode, one of which is not possible."""
    if not -(1 << 63) <= seconds < 1 << 63:
        return broken(f"inode {nid}: time {seconds} does not fit in 64 bits", offset + 12)
    if stat.S_IFMT(mode) not in ondisk.FILE_TYPES:
        return broken(f"inode {nid}: mode {mode:#o} has no file type", offset + 4)
    if size >> 63:
        return broken(f"inode {nid}: size {size} does not fit in 63 bits", offset + 8)
    return broken(f"inode {nid}: an xattr area of one slot is not defined", offset + 2)
