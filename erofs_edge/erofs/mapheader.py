# SPDX-License-Identifier: Apache-2.0
"""The map header of a compressed inode: how its cluster index is stored, and which features it may use.

Source: ``fs/erofs/zmap.c`` (z_erofs_fill_inode_lazy).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.superblock import SuperInfo

_COMPACT_LOBITS = 12
_FRAGMENT_INODE = 0x80  # h_clusterbits: the whole file is a fragment
_KNOWN_ADVISE = (
    ondisk.ADVISE_COMPACTED_2B
    | ondisk.ADVISE_BIG_PCLUSTER_1
    | ondisk.ADVISE_BIG_PCLUSTER_2
    | ondisk.ADVISE_INLINE_PCLUSTER
    | ondisk.ADVISE_INTERLACED_PCLUSTER
    | ondisk.ADVISE_FRAGMENT_PCLUSTER
)
_KNOWN_ADVISE_EXTENTS = (
    ondisk.ADVISE_EXTENTS
    | 0x06  # log2 of the record size, minus 2
    | ondisk.ADVISE_INLINE_PCLUSTER  # without meaning: every extent has a byte address
    | ondisk.ADVISE_INTERLACED_PCLUSTER
    | ondisk.ADVISE_FRAGMENT_PCLUSTER
)
_EQUAL_LENGTHS = 8  # records up to this size are for extents of one lcluster each
_EXTENTS_HEADER = Struct("<IHBB")
_START = Struct("<Q")


class ZMap(NamedTuple):
    """The map header of a compressed inode.

    position    byte address of the lcluster entries or extent records
    index_size  their size in bytes
    lclusters   their number
    four_byte   compact: entries in 4-byte packs before the 2-byte ones
    two_byte    compact: entries in 2-byte packs
    lobits      compact: bits of an entry below its type
    fragment    byte offset in the packed inode (low 32 bits, or all of it for a whole-file fragment); -1 if none
    idata_size  bytes of the inline tail, 0 if none
    lcluster_bits  log2 of the bytes of an lcluster
    record      bytes of a record of encoded extents; 0 if the index has lclusters
    """

    inode: DiskInode
    advise: int
    algorithms: tuple[int, int]
    position: int
    index_size: int
    lclusters: int
    four_byte: int
    two_byte: int
    lobits: int
    fragment: int
    whole_fragment: bool
    idata_size: int
    lcluster_bits: int = 12
    record: int = 0

    @property
    def is_compact(self) -> bool:
        return self.inode.layout == ondisk.LAYOUT_COMPRESSED_COMPACT


def read_zmap(backing: Backing, info: SuperInfo, inode: DiskInode) -> ZMap:
    """Parse and check the map header of a non-empty compressed inode. Raises ErofsFormatError."""
    what = f"inode {inode.nid}"
    if not (info.raw.feature_incompat & ondisk.INCOMPAT_COMPR_CFGS) and not (
        info.incompat(ondisk.INCOMPAT_LZ4_0PADDING) or info.raw.u1
    ):
        raise broken(f"{what}: compressed in an image without compression", inode.offset)
    position = -(-inode.body // 8) * 8
    compact = inode.layout == ondisk.LAYOUT_COMPRESSED_COMPACT
    low, advise, algorithm, clusterbits = backing.unpack(ondisk.MAP_HEADER, position, f"map header of {what}")
    if clusterbits & _FRAGMENT_INODE:
        if compact:
            raise broken(f"{what}: whole-file fragment with a compact index", position)
        _need(info, ondisk.INCOMPAT_FRAGMENTS, "fragments", what, position)
        header = int.from_bytes(backing.read(position, 8, "map header"), "little")
        fragment = header & (1 << 63) - 1
        return ZMap(inode, 0, (0, 0), position + 8, 0, 0, 0, 0, 0, fragment, True, 0)
    if not compact and advise & ondisk.ADVISE_EXTENTS:
        return _read_extents_header(backing, info, inode, position)
    if clusterbits & ~15:
        raise broken(f"{what}: unknown bits in h_clusterbits {clusterbits:#x}", position + 7)
    lcluster_bits = info.raw.blkszbits + clusterbits
    _check_advise(info, advise, what, position + 4)
    if compact:
        _check_compact(advise, lcluster_bits, what, position + 4)
    algorithms = algorithm & 15, algorithm >> 4
    if max(algorithms) not in ondisk.ALGORITHM_NAMES:
        raise broken(f"{what}: unknown compression algorithm {max(algorithms)}", position + 6)
    count = -(-inode.size >> lcluster_bits)  # rounded up
    index, index_size, four_byte, two_byte = _index_range(position, count, compact, advise)
    if not backing.holds(index, index_size):
        raise broken(f"{what}: index of {count} clusters for {inode.size} bytes ends outside the image", position)
    fragment, idata_size = -1, 0
    if advise & ondisk.ADVISE_FRAGMENT_PCLUSTER:
        fragment = low
    elif advise & ondisk.ADVISE_INLINE_PCLUSTER:
        idata_size = low >> 16
        at = index + index_size
        if not 0 < idata_size < info.block_size or at % info.block_size + idata_size > info.block_size:
            raise broken(f"{what}: inline tail of {idata_size} bytes is empty or crosses a block", position)
        backing.read(at, idata_size, f"inline tail of {what}")
    lobits = max(lcluster_bits, _COMPACT_LOBITS)
    return ZMap(
        inode, advise, algorithms, index, index_size, count, four_byte, two_byte, lobits, fragment, False, idata_size,
        lcluster_bits,
    )  # fmt: skip


def _read_extents_header(backing: Backing, info: SuperInfo, inode: DiskInode, position: int) -> ZMap:
    """Read the header of encoded extents (6.15): records of (encoded size, address and, in the larger forms, start)."""
    what = f"inode {inode.nid}"
    low, advise, high, clusterbits = backing.unpack(_EXTENTS_HEADER, position, f"map header of {what}")
    _need(info, ondisk.INCOMPAT_48BIT, "encoded extents", what, position + 4)
    record = 4 << (advise >> 1 & 3)
    if advise & ~_KNOWN_ADVISE_EXTENTS:
        raise broken(f"{what}: unknown bits in h_advise {advise:#x}", position + 4)
    if advise & ondisk.ADVISE_FRAGMENT_PCLUSTER:
        _need(info, ondisk.INCOMPAT_FRAGMENTS, "fragments", what, position + 4)
    index = -(-(position + 8) // record) * record
    lcluster_bits = info.raw.blkszbits + (clusterbits & 15)
    if record <= _EQUAL_LENGTHS:
        count = -(-inode.size >> lcluster_bits)
        size = count * record + (_START.size if record == 4 else 0)
    else:
        count = low | high << 32 | clusterbits << 40
        size = count * record
    if not count or not backing.holds(index, size):
        raise broken(f"{what}: {count} extents of {inode.size} bytes are none or end outside the image", position)
    fragment = 0 if advise & ondisk.ADVISE_FRAGMENT_PCLUSTER else -1
    return ZMap(inode, advise, (0, 0), index, size, count, 0, 0, 0, fragment, False, 0, lcluster_bits, record)


def _check_advise(info: SuperInfo, advise: int, what: str, where: int) -> None:
    if advise & ~_KNOWN_ADVISE:
        raise broken(f"{what}: unknown bits in h_advise {advise:#x}", where)
    if advise & (ondisk.ADVISE_BIG_PCLUSTER_1 | ondisk.ADVISE_BIG_PCLUSTER_2):
        _need(info, ondisk.INCOMPAT_BIG_PCLUSTER, "big pclusters", what, where)
    if advise & ondisk.ADVISE_INLINE_PCLUSTER:
        _need(info, ondisk.INCOMPAT_ZTAILPACKING, "inline tails", what, where)
    if advise & ondisk.ADVISE_FRAGMENT_PCLUSTER:
        _need(info, ondisk.INCOMPAT_FRAGMENTS, "fragments", what, where)
        if advise & ondisk.ADVISE_INLINE_PCLUSTER:
            raise broken(f"{what}: both an inline tail and a fragment", where)


def _check_compact(advise: int, lcluster_bits: int, what: str, where: int) -> None:
    big = advise & (ondisk.ADVISE_BIG_PCLUSTER_1 | ondisk.ADVISE_BIG_PCLUSTER_2)
    if big.bit_count() == 1:
        raise broken(f"{what}: compact index with big pclusters for one head type only", where)
    if lcluster_bits > (12 if advise & ondisk.ADVISE_COMPACTED_2B else 14):
        raise broken(f"{what}: compact index with clusters of {1 << lcluster_bits} bytes", where)


def _need(info: SuperInfo, bit: int, name: str, what: str, where: int) -> None:
    if not info.incompat(bit):
        raise broken(f"{what}: {name} in an image without them", where)


def _index_range(header: int, count: int, compact: bool, advise: int) -> tuple[int, int, int, int]:
    """Return (byte address, bytes, leading entries in 4-byte packs, entries in 2-byte packs) of an lcluster index."""
    if not compact:
        return header + 16, count * ondisk.FULL_INDEX.size, 0, 0
    index = header + 8
    four_byte, two_byte = _compact_sizes(index, count, bool(advise & ondisk.ADVISE_COMPACTED_2B))
    rest = count - four_byte - two_byte
    return index, four_byte * 4 + two_byte * 2 + -(-rest // 2) * 8, four_byte, two_byte


def _compact_sizes(index: int, count: int, two_byte_allowed: bool) -> tuple[int, int]:
    """Return (leading entries in 4-byte packs, entries in 2-byte packs)."""
    leading = (32 - index % 32) // 4 % 8
    if not two_byte_allowed or leading >= count:
        return 0, 0
    return leading, (count - leading) // 16 * 16
