# SPDX-License-Identifier: Apache-2.0
"""Read and check the superblock and the compression records after it.

Sources: ``fs/erofs/super.c`` (erofs_read_superblock, z_erofs_parse_cfgs) and ``erofs_fs.h``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.device_table import DeviceSlot, read_slots
from erofs_edge.erofs.ondisk import Superblock
from erofs_edge.errors import ErofsFormatError

PAGE_SIZE = 4096
CHECKSUM_OFFSET = ondisk.SUPER_OFFSET + 4
_RECORD_LENGTH = Struct("<H")
_METABOX_NID = Struct("<Q")

COMPAT_NAMES = {
    ondisk.COMPAT_SB_CHKSUM: "sb_csum",
    ondisk.COMPAT_MTIME: "mtime",
    ondisk.COMPAT_XATTR_FILTER: "xattr_filter",
    ondisk.COMPAT_SHARED_EA_IN_METABOX: "shared_ea_in_metabox",
    ondisk.COMPAT_PLAIN_XATTR_PFX: "plain_xattr_pfx",
    ondisk.COMPAT_ISHARE_XATTRS: "ishare_xattrs",
    ondisk.COMPAT_RAFS_V6: "rafs_v6",
}


@dataclass(frozen=True, slots=True)
class SuperInfo:
    """The contents of the superblock, checked.

    raw             the on-disk fields
    block_size      bytes
    blocks          blocks of the image itself, without those of extra devices
    size            the same in bytes
    devices         the extra devices
    metabox_nid     number of the inode that holds metadata, 0 if there is none
    algorithms      bitmap of the codecs that the image may use (1 << ondisk.ALGORITHM_*)
    max_pcluster    bytes of the largest LZ4 pcluster announced
    checksum        computed checksum; equals raw.checksum if COMPAT_SB_CHKSUM is set and the bytes are intact
    """

    raw: Superblock
    algorithms: int
    max_pcluster: int
    checksum: int
    records: dict[int, bytes] = field(default_factory=dict)
    devices: tuple[DeviceSlot, ...] = ()
    metabox_nid: int = 0

    @property
    def block_size(self) -> int:
        return 1 << self.raw.blkszbits

    @property
    def size(self) -> int:
        return self.blocks << self.raw.blkszbits

    @property
    def blocks(self) -> int:
        return self.raw.blocks_lo | (self.raw.rootnid_2b << 32 if self._wide_root else 0)

    @property
    def root_nid(self) -> int:
        return self.raw.rootnid_8b if self._wide_root else self.raw.rootnid_2b

    @property
    def _wide_root(self) -> bool:
        return bool(self.raw.feature_incompat & ondisk.INCOMPAT_48BIT and self.raw.rootnid_8b)

    @property
    def super_size(self) -> int:
        return ondisk.SUPER_SIZE + self.raw.sb_extslots * ondisk.EXTSLOT_SIZE

    @property
    def epoch(self) -> int:
        """Seconds since 1970, may be negative."""
        return self.raw.epoch - (1 << 64) if self.raw.epoch >> 63 else self.raw.epoch

    @property
    def is_rafs(self) -> bool:
        """Whether this is the bootstrap of a RAFS image, as made by Nydus."""
        return bool(self.raw.feature_compat & ondisk.COMPAT_RAFS_V6)

    @property
    def volume_name(self) -> bytes:
        return self.raw.volume_name.split(b"\0", 1)[0]

    def incompat(self, bit: int) -> bool:
        return bool(self.raw.feature_incompat & bit)

    @property
    def checksum_ok(self) -> bool:
        """Whether the image has no checksum or the right one."""
        return not self.raw.feature_compat & ondisk.COMPAT_SB_CHKSUM or self.raw.checksum == self.checksum


def read_superblock(backing: Backing, *, verify_checksum: bool = True) -> SuperInfo:
    """Parse the superblock. Raises ErofsFormatError for everything that a kernel refuses to mount, and for features
    that this reader does not support; the message names the feature."""
    raw = Superblock(*backing.unpack(ondisk.SUPERBLOCK, ondisk.SUPER_OFFSET, "superblock"))
    at = ondisk.SUPER_OFFSET
    if raw.magic != ondisk.SUPER_MAGIC:
        raise broken(f"not an EROFS image: magic is {raw.magic:#010x}, not {ondisk.SUPER_MAGIC:#010x}", at)
    if not ondisk.BLKSZBITS_MIN <= raw.blkszbits <= ondisk.BLKSZBITS_MAX:
        raise broken(f"block size 2**{raw.blkszbits} is not 512 to 65536", at + 12)
    _refuse_unknown(raw)
    if raw.dirblkbits:
        raise broken(f"directory blocks of 2**{raw.dirblkbits} blocks are not defined", at + 90)
    if raw.fixed_nsec >= 1_000_000_000:
        raise broken(f"{raw.fixed_nsec} nanoseconds are more than a second", at + 32)
    if at + ondisk.SUPER_SIZE + raw.sb_extslots * ondisk.EXTSLOT_SIZE > PAGE_SIZE:
        raise broken(f"{raw.sb_extslots} extension slots reach beyond the first page", at + 13)
    if raw.feature_compat & ondisk.COMPAT_RAFS_V6:
        raw = raw._replace(blocks_lo=_rafs_blocks(backing, raw))
    parsed = SuperInfo(raw, 1 << ondisk.ALGORITHM_LZ4, 1 << raw.blkszbits, 0)
    size = parsed.size
    if size > backing.size:
        raise ErofsFormatError(
            f"the image is truncated: it has {backing.size} bytes, the superblock says {size}",
            where=f"offset {backing.size:#x}",
        )
    block = 1 << raw.blkszbits
    checked_end = max(block, ondisk.SUPER_OFFSET + min(block, ondisk.SUPER_OFFSET))
    checksum = 0
    if raw.feature_compat & ondisk.COMPAT_SB_CHKSUM:
        checksum = ondisk.super_checksum(backing.read(0, checked_end, "first block"), raw.blkszbits)
        if verify_checksum and checksum != raw.checksum:
            raise broken(
                f"superblock checksum is {raw.checksum:#010x}, the bytes have {checksum:#010x}", CHECKSUM_OFFSET
            )
    backing.end = size
    algorithms, max_blocks = parsed.algorithms, 1
    records: dict[int, bytes] = {}
    if raw.feature_incompat & ondisk.INCOMPAT_COMPR_CFGS:
        algorithms = raw.u1
        max_blocks, records = _read_records(backing, raw)
    devices = read_slots(backing, raw, parsed.blocks)
    metabox_nid = _read_metabox(backing, raw)
    return SuperInfo(raw, algorithms, max_blocks << raw.blkszbits, checksum, records, devices, metabox_nid)


def _rafs_blocks(backing: Backing, raw: Superblock) -> int:
    """Return the blocks of a RAFS bootstrap: the whole file, up to where the first device may follow.

    Nydus's own builder stores the number of data blocks in that field (``builder/src/core/v6.rs``), and 0 if there is
    no data.
    """
    starts = [slot.uniaddr for slot in read_slots(backing, raw, 0) if slot.uniaddr]
    return min([backing.size >> raw.blkszbits, ondisk.NULL_ADDR, *starts])


def _read_metabox(backing: Backing, raw: Superblock) -> int:
    """Return the metabox inode from the first extension slot, 0 if the image has no metabox."""
    if not raw.feature_incompat & ondisk.INCOMPAT_METABOX:
        return 0
    at = ondisk.SUPER_OFFSET + ondisk.SUPER_SIZE
    if not raw.sb_extslots:
        raise broken("a metabox without the superblock's extension slot", ondisk.SUPER_OFFSET + 13)
    (nid,) = backing.unpack(_METABOX_NID, at, "metabox inode number")
    if nid >> 63 or not nid:
        raise broken(f"the metabox inode has the impossible number {nid:#x}", at)
    return int(nid)


def _refuse_unknown(raw: Superblock) -> None:
    at = ondisk.SUPER_OFFSET + 80
    unknown = raw.feature_incompat & ~ondisk.INCOMPAT_KNOWN
    if unknown:
        raise broken(f"the image needs unknown features {unknown:#x}", at)


def _read_records(backing: Backing, raw: Superblock) -> tuple[int, dict[int, bytes]]:
    """Return (blocks of the largest LZ4 pcluster, algorithm → record bytes without the length)."""
    if raw.u1 >> len(ondisk.ALGORITHM_NAMES):
        raise broken(f"unknown compression algorithms {raw.u1:#x}", ondisk.SUPER_OFFSET + 84)
    position = ondisk.SUPER_OFFSET + ondisk.SUPER_SIZE + raw.sb_extslots * ondisk.EXTSLOT_SIZE
    structs = {
        ondisk.ALGORITHM_LZ4: ondisk.LZ4_CFG,
        ondisk.ALGORITHM_LZMA: ondisk.LZMA_CFG,
        ondisk.ALGORITHM_DEFLATE: ondisk.DEFLATE_CFG,
        ondisk.ALGORITHM_ZSTD: ondisk.ZSTD_CFG,
    }
    max_blocks = 1
    records: dict[int, bytes] = {}
    for algorithm, name in ondisk.ALGORITHM_NAMES.items():
        if not raw.u1 >> algorithm & 1:
            continue
        position = (position + 3) & ~3
        (length,) = backing.unpack(_RECORD_LENGTH, position, f"{name} record")
        length = length or 65536
        if length < structs[algorithm].size - _RECORD_LENGTH.size:
            raise broken(f"{name} record of {length} bytes is too short", position)
        record = backing.read(position + 2, length, f"{name} record")
        _, *fields = structs[algorithm].unpack(bytes(2) + record[: structs[algorithm].size - 2])
        if algorithm == ondisk.ALGORITHM_LZ4:
            max_blocks = fields[1] or 1
        _check_record(algorithm, fields, raw.blkszbits, position)
        records[algorithm] = record
        position += 2 + length
    return max_blocks, records


def _check_record(algorithm: int, fields: list[int], blkszbits: int, position: int) -> None:
    if algorithm == ondisk.ALGORITHM_LZ4:
        # fs/erofs/decompressor.c and zutil.c: 1 MiB, and a buffer of that many pages, whatever the block size
        most = min(ondisk.PCLUSTER_MAX >> blkszbits, ondisk.LZ4_PCLUSTER_BLOCKS_MAX)
        if fields[1] > most:
            raise broken(f"LZ4 pclusters of {fields[1]} blocks are over the {most} that kernels read", position)
    if algorithm == ondisk.ALGORITHM_LZMA and (not 4096 <= fields[0] <= 8 << 20 or fields[1]):
        raise broken(f"LZMA dictionary of {fields[0]} bytes, format {fields[1]} is not defined", position)
    if algorithm == ondisk.ALGORITHM_DEFLATE and fields[0] > 15:  # libdeflate in mkfs.erofs writes 0
        raise broken(f"deflate window of 2**{fields[0]} bytes is not defined", position)
    if algorithm == ondisk.ALGORITHM_ZSTD and (fields[0] or fields[1] > 10):
        raise broken(f"zstd format {fields[0]}, window 2**{fields[1] + 10} is not defined", position)


def feature_names(info: SuperInfo) -> tuple[list[str], list[str]]:
    """Return (compatible, incompatible) feature names as dump.erofs prints them.

    Bits with two features get both names.
    """
    raw = info.raw
    compat = [name for bit, name in COMPAT_NAMES.items() if raw.feature_compat & bit]
    names = {
        ondisk.INCOMPAT_LZ4_0PADDING: ["lz4_0padding"],
        ondisk.INCOMPAT_COMPR_CFGS: ["compr_cfgs", "big_pcluster"],
        ondisk.INCOMPAT_CHUNKED_FILE: ["chunked_file"],
        ondisk.INCOMPAT_DEVICE_TABLE: ["device_table", "compr_head2"],
        ondisk.INCOMPAT_ZTAILPACKING: ["ztailpacking"],
        ondisk.INCOMPAT_FRAGMENTS: ["fragments", "dedupe"],
        ondisk.INCOMPAT_XATTR_PREFIXES: ["xattr_prefixes"],
        ondisk.INCOMPAT_48BIT: ["48bit"],
        ondisk.INCOMPAT_METABOX: ["metabox"],
    }
    incompat = [name for bit, both in names.items() if raw.feature_incompat & bit for name in both]
    return compat, incompat
