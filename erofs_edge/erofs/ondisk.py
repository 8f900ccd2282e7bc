# SPDX-License-Identifier: Apache-2.0
"""EROFS on-disk structures: names, sizes and bits, as in the kernel's ``fs/erofs/erofs_fs.h``.

Everything is little-endian. The structs have the kernel's field names; offsets in comments are in bytes. This module is
all that writer and reader share.
"""

from __future__ import annotations

import stat
from struct import Struct
from typing import NamedTuple

SUPER_OFFSET = 1024
SUPER_MAGIC = 0xE0F5E1E2
SUPER_SIZE = 128
EXTSLOT_SIZE = 16
SLOT_BITS = 5  # an inode's address is meta_blkaddr * block size + nid * 32
SLOT_SIZE = 1 << SLOT_BITS
NULL_ADDR = 0xFFFFFFFF
LCLUSTERS_MAX = 0xFFFFFFFF  # in a file: kernels count them in 32 bits (totalidx in zmap.c)
NAME_MAX = 255
BLKSZBITS_MIN, BLKSZBITS_MAX = 9, 16
PCLUSTER_MAX = 1 << 20  # encoded bytes of one pcluster
LZ4_PCLUSTER_BLOCKS_MAX = 256  # fs/erofs/decompressor.c, z_erofs_load_lz4_config
EXTENT_MAX = 12 << 20  # decoded bytes of one extent; kernels refuse more
BLOCKS_MAX = (1 << 48) - 1  # in an image; without 48BIT one less than 32 bits allow

# feature_compat
COMPAT_SB_CHKSUM = 0x01
COMPAT_MTIME = 0x02
COMPAT_XATTR_FILTER = 0x04
COMPAT_SHARED_EA_IN_METABOX = 0x08
COMPAT_PLAIN_XATTR_PFX = 0x10
COMPAT_ISHARE_XATTRS = 0x20
COMPAT_RAFS_V6 = 0x40000000  # Nydus: additional structures in the image, see rafs/

# feature_incompat; three bits carry two features each
INCOMPAT_LZ4_0PADDING = 0x001
INCOMPAT_COMPR_CFGS = 0x002
INCOMPAT_BIG_PCLUSTER = 0x002
INCOMPAT_CHUNKED_FILE = 0x004
INCOMPAT_DEVICE_TABLE = 0x008
INCOMPAT_COMPR_HEAD2 = 0x008
INCOMPAT_ZTAILPACKING = 0x010
INCOMPAT_FRAGMENTS = 0x020
INCOMPAT_DEDUPE = 0x020
INCOMPAT_XATTR_PREFIXES = 0x040
INCOMPAT_48BIT = 0x080
INCOMPAT_METABOX = 0x100
INCOMPAT_KNOWN = 0x1FF


class Superblock(NamedTuple):
    """struct erofs_super_block, 128 bytes at byte 1024 (extension slots follow)."""

    magic: int = SUPER_MAGIC
    checksum: int = 0
    feature_compat: int = 0
    blkszbits: int = 12
    sb_extslots: int = 0
    rootnid_2b: int = 0  # blocks_hi when 48BIT is set and rootnid_8b is not zero
    inos: int = 0
    epoch: int = 0
    fixed_nsec: int = 0
    blocks_lo: int = 0
    meta_blkaddr: int = 0
    xattr_blkaddr: int = 0
    uuid: bytes = bytes(16)
    volume_name: bytes = bytes(16)
    feature_incompat: int = 0
    u1: int = 0  # available_compr_algs with COMPR_CFGS, else lz4_max_distance
    extra_devices: int = 0
    devt_slotoff: int = 0
    dirblkbits: int = 0
    xattr_prefix_count: int = 0
    xattr_prefix_start: int = 0
    packed_nid: int = 0
    xattr_filter_reserved: int = 0
    ishare_xattr_prefix_id: int = 0
    reserved: int = 0
    build_time: int = 0
    rootnid_8b: int = 0
    reserved2: int = 0


SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBBIQBBHIQQ")
assert SUPERBLOCK.size == SUPER_SIZE  # noqa: S101 - a wrong struct must fail the import

# i_format
FORMAT_EXTENDED = 0x0001
LAYOUT_SHIFT, LAYOUT_MASK = 1, 0x7
LAYOUT_FLAT_PLAIN = 0
LAYOUT_COMPRESSED_FULL = 1
LAYOUT_FLAT_INLINE = 2
LAYOUT_COMPRESSED_COMPACT = 3
LAYOUT_CHUNK_BASED = 4
FORMAT_NLINK_1 = 0x0010  # 6.15: nlink is 1 and its field holds address bits; in directories, "." is omitted

# i_format, i_xattr_icount, i_mode, i_nlink, i_size, i_mtime, i_u, i_ino, i_uid, i_gid, reserved
COMPACT_INODE = Struct("<HHHHIIIIHHI")
# i_format, i_xattr_icount, i_mode, i_nb, i_size, i_u, i_ino, i_uid, i_gid, i_mtime (signed), i_mtime_nsec, i_nlink
EXTENDED_INODE = Struct("<HHHHQIIIIqII16x")
COMPACT_SIZE, EXTENDED_SIZE = 32, 64

DIRENT = Struct("<QHBx")  # nid, nameoff, file_type
DIRENT_SIZE = 12
FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

XATTR_HEADER = Struct("<IB7x")  # h_name_filter, h_shared_count
XATTR_ENTRY = Struct("<BBH")  # e_name_len, e_name_index, e_value_size
XATTR_LONG_PREFIX = 0x80
XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
FINGERPRINT = b"erofs.fingerprint.v1"
"""attribute with the fingerprint of a file's content, without a namespace: index 0"""
XATTR_FILTER_SEED = 0x25BBE08F

# chunk-based files
CHUNK_BITS_MASK = 0x1F
CHUNK_INDEXES = 0x20
CHUNK_48BIT = 0x40
CHUNK_INDEX = Struct("<HHI")  # startblk_hi, device_id, startblk_lo
DEVICE_SLOT = Struct("<64sIIHH52x")  # tag, blocks_lo, uniaddr_lo, blocks_hi, uniaddr_hi

# compression: h_fragmentoff (or h_idata_size in its upper half), h_advise, h_algorithmtype, h_clusterbits
MAP_HEADER = Struct("<IHBB")
ADVISE_COMPACTED_2B = 0x01
ADVISE_EXTENTS = 0x01  # layout 1 with 48BIT
ADVISE_BIG_PCLUSTER_1 = 0x02
ADVISE_BIG_PCLUSTER_2 = 0x04
ADVISE_INLINE_PCLUSTER = 0x08
ADVISE_INTERLACED_PCLUSTER = 0x10
ADVISE_FRAGMENT_PCLUSTER = 0x20

LCLUSTER_PLAIN = 0
LCLUSTER_HEAD1 = 1
LCLUSTER_NONHEAD = 2
LCLUSTER_HEAD2 = 3
FULL_INDEX = Struct("<HHI")  # di_advise, di_clusterofs, blkaddr or two deltas
INDEX_PARTIAL_REF = 0x8000
INDEX_HOLE = 0x4000
D0_CBLKCNT = 0x800  # delta[0] of the first NONHEAD holds the pcluster's block count
DELTA_MAX = 0x7FF

ALGORITHM_LZ4, ALGORITHM_LZMA, ALGORITHM_DEFLATE, ALGORITHM_ZSTD = range(4)
ALGORITHM_NAMES = {0: "lz4", 1: "lzma", 2: "deflate", 3: "zstd"}
LZ4_CFG = Struct("<HHH10x")  # record length 14, max_distance, max_pclusterblks
LZMA_CFG = Struct("<HIH8x")  # 14, dict_size, format
DEFLATE_CFG = Struct("<HB5x")  # 6, windowbits
ZSTD_CFG = Struct("<HBB4x")  # 6, format, windowlog - 10


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    """Return the CRC-32C without the final inversion, as used for the superblock checksum."""
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


def super_checksum(first_blocks: bytes, blkszbits: int) -> int:
    """Return the checksum of an image, given its first bytes (at least up to the end of the block with byte 1024).

    The checksum field itself counts as zero.
    """
    size = 1 << blkszbits
    end = size if size > SUPER_OFFSET else SUPER_OFFSET + size
    data = bytearray(first_blocks[SUPER_OFFSET:end])
    data[4:8] = bytes(4)
    return crc32c(bytes(data))


def epoch_parts(mtime_ns: int) -> tuple[int, int]:
    """Split a time in nanoseconds since 1970 into (seconds rounded down, nanoseconds 0..999999999)."""
    return divmod(mtime_ns, 1_000_000_000)
