# SPDX-License-Identifier: Apache-2.0
"""Map compressed files: the map header, the full and the compact lcluster index, and the extents they describe.

Source: ``fs/erofs/zmap.c``. The index is decoded in windows, so that memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import ErofsFormatError

_FULL_WINDOW = 1024  # full index entries read at once
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
_TYPE_MASK = 0x3


class ZMap(NamedTuple):
    """The map header of a compressed inode.

    position    byte address of the lcluster entries
    index_size  bytes of them
    lclusters   how many
    four_byte   compact: entries in 4-byte packs before the 2-byte ones
    two_byte    compact: entries in 2-byte packs
    lobits      compact: bits of an entry below its type
    fragment    byte offset in the packed inode (low 32 bits, or all of it for a whole-file fragment); -1 without
    idata_size  bytes of the inline tail, 0 without
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

    @property
    def is_compact(self) -> bool:
        return self.inode.layout == ondisk.LAYOUT_COMPRESSED_COMPACT


class Entry(NamedTuple):
    """One lcluster.

    offset  clusterofs of a head; distance back to the head for NONHEAD
    block   first block of a head's pcluster; for NONHEAD the pcluster's count of blocks, -1 where it is not given
    ahead   distance forward to the next head, -1 where it is not stored
    """

    kind: int
    offset: int
    block: int
    partial: bool
    ahead: int


_NONHEAD = [Entry(ondisk.LCLUSTER_NONHEAD, distance, -1, False, -1) for distance in range(ondisk.DELTA_MAX + 1)]


def read_zmap(backing: Backing, info: SuperInfo, inode: DiskInode) -> ZMap:
    """Parse and check the map header of a compressed inode of size > 0. Raises ErofsFormatError."""
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
    if clusterbits:
        raise ErofsFormatError(
            f"{what}: logical clusters of 2**{clusterbits & 15} blocks (bits {clusterbits:#x}) are not supported",
            where=f"offset {position + 7:#x}",
        )
    _check_advise(info, advise, compact, what, position + 4)
    algorithms = algorithm & 15, algorithm >> 4
    if max(algorithms) not in ondisk.ALGORITHM_NAMES:
        raise broken(f"{what}: unknown compression algorithm {max(algorithms)}", position + 6)
    count = -(-inode.size // info.block_size)
    four_byte = two_byte = 0
    if compact:
        index = position + 8
        four_byte, two_byte = _compact_sizes(index, count, bool(advise & ondisk.ADVISE_COMPACTED_2B))
        rest = count - four_byte - two_byte
        index_size = four_byte * 4 + two_byte * 2 + -(-rest // 2) * 8
    else:
        index = position + 16
        index_size = count * ondisk.FULL_INDEX.size
    if index + index_size > backing.end:
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
    lobits = max(info.raw.blkszbits, _COMPACT_LOBITS)
    return ZMap(
        inode, advise, algorithms, index, index_size, count, four_byte, two_byte, lobits, fragment, False, idata_size
    )


def _check_advise(info: SuperInfo, advise: int, compact: bool, what: str, where: int) -> None:
    if advise & ~_KNOWN_ADVISE:
        raise broken(f"{what}: unknown bits in h_advise {advise:#x}", where)
    if not compact and advise & ondisk.ADVISE_EXTENTS:
        raise ErofsFormatError(f"{what}: encoded extents are not supported", where=f"offset {where:#x}")
    big = advise & (ondisk.ADVISE_BIG_PCLUSTER_1 | ondisk.ADVISE_BIG_PCLUSTER_2)
    if big:
        _need(info, ondisk.INCOMPAT_BIG_PCLUSTER, "big pclusters", what, where)
    if compact and big.bit_count() == 1:
        raise broken(f"{what}: compact index with big pclusters for one head type only", where)
    if compact and info.raw.blkszbits > (12 if advise & ondisk.ADVISE_COMPACTED_2B else 14):
        raise broken(f"{what}: compact index with blocks of {info.block_size} bytes", where)
    if advise & ondisk.ADVISE_INLINE_PCLUSTER:
        _need(info, ondisk.INCOMPAT_ZTAILPACKING, "inline tails", what, where)
    if advise & ondisk.ADVISE_FRAGMENT_PCLUSTER:
        _need(info, ondisk.INCOMPAT_FRAGMENTS, "fragments", what, where)
        if advise & ondisk.ADVISE_INLINE_PCLUSTER:
            raise broken(f"{what}: both an inline tail and a fragment", where)


def _need(info: SuperInfo, bit: int, name: str, what: str, where: int) -> None:
    if not info.incompat(bit):
        raise broken(f"{what}: {name} in an image without them", where)


def _compact_sizes(index: int, count: int, two_byte_allowed: bool) -> tuple[int, int]:
    """(leading entries in 4-byte packs, entries in 2-byte packs)."""
    leading = (32 - index % 32) // 4 % 8
    if not two_byte_allowed or leading >= count:
        return 0, 0
    return leading, (count - leading) // 16 * 16


def entries(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[Entry]:
    """The lcluster entries from number `lcn` to the last one. Raises ErofsFormatError."""
    return _compact_entries(backing, zmap, lcn) if zmap.is_compact else _full_entries(backing, zmap, lcn)


def _full_entries(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[Entry]:
    big = zmap.advise & (ondisk.ADVISE_BIG_PCLUSTER_1 | ondisk.ADVISE_BIG_PCLUSTER_2)
    size = ondisk.FULL_INDEX.size
    for first in range(lcn, zmap.lclusters, _FULL_WINDOW):
        window = min(_FULL_WINDOW, zmap.lclusters - first)
        data = backing.read(zmap.position + first * size, window * size, "cluster index")
        for number, (advise, offset, value) in enumerate(ondisk.FULL_INDEX.iter_unpack(data)):
            kind = advise & _TYPE_MASK
            if kind != ondisk.LCLUSTER_NONHEAD:
                if advise & ~(_TYPE_MASK | ondisk.INDEX_PARTIAL_REF):
                    where = zmap.position + (first + number) * size
                    raise broken(f"inode {zmap.inode.nid}: unknown bits in cluster advise {advise:#x}", where)
                yield Entry(kind, offset, value, bool(advise & ondisk.INDEX_PARTIAL_REF), -1)
                continue
            back, ahead = value & 0xFFFF, value >> 16
            if back & ondisk.D0_CBLKCNT:
                blocks = back & ~ondisk.D0_CBLKCNT
                if not big:
                    where = zmap.position + (first + number) * size
                    raise broken(f"inode {zmap.inode.nid}: pcluster of {blocks} blocks is not possible", where)
                yield Entry(kind, 1, blocks, False, ahead)
            else:
                yield Entry(kind, back, -1, False, ahead)


def _compact_entries(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[Entry]:
    while lcn < zmap.lclusters:
        first, entries_in_pack, address, size = _pack(zmap, lcn)
        data = backing.read(address, size, "cluster index")
        pack = _decode_pack(zmap, data, entries_in_pack, address)
        last = min(entries_in_pack, zmap.lclusters - first)
        yield from pack[lcn - first : last]
        lcn = first + entries_in_pack


def _pack(zmap: ZMap, lcn: int) -> tuple[int, int, int, int]:
    """(first entry, entries, byte address, bytes) of the pack that holds entry `lcn`."""
    if lcn < zmap.four_byte:
        number = lcn // 2
        return number * 2, 2, zmap.position + number * 8, 8
    address = zmap.position + zmap.four_byte * 4
    inside = lcn - zmap.four_byte
    if inside < zmap.two_byte:
        number = inside // 16
        return zmap.four_byte + number * 16, 16, address + number * 32, 32
    number = (inside - zmap.two_byte) // 2
    first = zmap.four_byte + zmap.two_byte + number * 2
    return first, 2, address + zmap.two_byte * 2 + number * 8, 8


def _decode_pack(zmap: ZMap, data: bytes, count: int, address: int) -> list[Entry]:
    """The entries of one pack: `count` values of 14 or 16 bits, then the base block number.

    The block of a head is the base plus the blocks of the pclusters before it that show in this pack; without big
    pclusters it is the base plus its rank among the heads.
    """
    bits = (len(data) - 4) * 8 // count
    lobits = zmap.lobits
    lo_mask = (1 << lobits) - 1
    big = zmap.advise & ondisk.ADVISE_BIG_PCLUSTER_1
    stream = int.from_bytes(data[:-4], "little")
    block = int.from_bytes(data[-4:], "little")
    pack: list[Entry] = []
    pending = 0 if big else 1  # blocks of the head before, where the pack has not told them yet
    distance = 0  # back to the head, of the slot before; 0 for a head
    for slot in range(count):
        value = stream >> slot * bits
        kind, lo = value >> lobits & _TYPE_MASK, value & lo_mask
        if kind != ondisk.LCLUSTER_NONHEAD:
            block += pending
            pending, distance = 1, 0
            pack.append(Entry(kind, lo, block, False, -1))
        elif lo & ondisk.D0_CBLKCNT:
            blocks = lo & ~ondisk.D0_CBLKCNT
            if not big or blocks > ondisk.DELTA_MAX:
                raise broken(f"inode {zmap.inode.nid}: pcluster of {blocks} blocks is not possible", address)
            block += blocks
            pending, distance = 0, 1
            pack.append(Entry(kind, 1, blocks, False, -1))
        elif slot == count - 1:
            pack.append(Entry(kind, distance + 1, -1, False, lo))
        else:
            distance = lo
            pack.append(_NONHEAD[lo & ondisk.DELTA_MAX])
    return pack


def compressed_extents(backing: Backing, info: SuperInfo, zmap: ZMap, offset: int) -> Iterator[Extent]:
    """Extents from the one that holds byte `offset` on, in order, covering the rest of the file.

    Raises ErofsFormatError where the index contradicts itself or an extent leaves the image.
    """
    inode = zmap.inode
    if zmap.whole_fragment:
        yield Extent(0, inode.size, Kind.FRAGMENT, zmap.fragment)
        return
    first = _head_of(backing, info, zmap, offset) if offset else 0
    for run in _runs(backing, info, zmap, first):
        if run.start >= inode.size:  # the terminator
            break
        yield _extent(backing, info, zmap, run)


class _Run(NamedTuple):
    """A head and what its NONHEADs say: bytes [start, end) of the file in `blocks` blocks."""

    lcn: int
    head: Entry
    blocks: int
    start: int
    end: int


def _runs(backing: Backing, info: SuperInfo, zmap: ZMap, lcn: int) -> Iterator[_Run]:
    bits = info.raw.blkszbits
    head: Entry | None = None
    head_lcn, blocks, start = lcn, 1, 0
    for number, entry in enumerate(entries(backing, zmap, lcn), lcn):
        if entry.kind == ondisk.LCLUSTER_NONHEAD:
            distance = number - head_lcn
            if head is None or (entry.offset != distance and entry.offset < ondisk.DELTA_MAX):
                raise _wrong(zmap, number, f"says its extent starts {entry.offset} clusters before, not {distance}")
            if distance << bits >= ondisk.EXTENT_MAX and zmap.fragment < 0:
                raise _wrong(zmap, number, "makes its extent longer than 12 MiB")
            if distance == 1:
                blocks = _blocks_of(zmap, head, entry, number)
            elif entry.block >= 0:
                raise _wrong(zmap, number, "gives a count of blocks out of place")
            continue
        if entry.offset >> bits or (entry.offset and not number):
            raise _wrong(zmap, number, f"starts an extent at offset {entry.offset}")
        next_start = number << bits | entry.offset
        if head is not None:
            yield _Run(head_lcn, head, blocks, start, next_start)
        head, head_lcn, blocks, start = entry, number, 1, next_start
    if head is not None:
        yield _Run(head_lcn, head, blocks, start, zmap.inode.size)


def check_distances(backing: Backing, zmap: ZMap) -> None:
    """Check the forward distances, which only read-ahead uses. Raises ErofsFormatError.

    A distance of 0 stands for 1: mkfs before 1.0 wrote it.
    """
    told = -1  # where the next head is announced
    for lcn, entry in enumerate(entries(backing, zmap, 0)):
        if entry.kind != ondisk.LCLUSTER_NONHEAD:
            if told not in (-1, lcn):
                raise _wrong(zmap, lcn, f"starts an extent where none was announced before cluster {told}")
            told = -1
        elif entry.ahead >= 0 and entry.ahead != ondisk.DELTA_MAX:  # that one is saturated
            here = lcn + (entry.ahead or 1)
            if told not in (-1, here):
                raise _wrong(zmap, lcn, f"announces an extent at cluster {here}, another one at {told}")
            told = here
    if told > zmap.lclusters:
        raise _wrong(zmap, zmap.lclusters - 1, f"announces an extent at cluster {told} behind the end")


def _wrong(zmap: ZMap, lcn: int, message: str) -> ErofsFormatError:
    where = _pack(zmap, lcn)[2] if zmap.is_compact else zmap.position + lcn * ondisk.FULL_INDEX.size
    return broken(f"inode {zmap.inode.nid}: cluster {lcn} {message}", where)


def _blocks_of(zmap: ZMap, head: Entry, entry: Entry, lcn: int) -> int:
    """Blocks of a pcluster whose first NONHEAD is `entry`; mkfs.erofs writes 0 for a tail that is a fragment."""
    big = ondisk.ADVISE_BIG_PCLUSTER_1 if head.kind == ondisk.LCLUSTER_HEAD1 else ondisk.ADVISE_BIG_PCLUSTER_2
    if not zmap.advise & big:
        if entry.block >= 0:
            raise _wrong(zmap, lcn, "gives a count of blocks without big pclusters")
        return 1
    if entry.block < 0:
        raise _wrong(zmap, lcn, "lacks the count of blocks of its pcluster")
    return entry.block


def _head_of(backing: Backing, info: SuperInfo, zmap: ZMap, offset: int) -> int:
    """The lcluster in which the extent of byte `offset` starts."""
    bits = info.raw.blkszbits
    lcn = offset >> bits
    entry = next(entries(backing, zmap, lcn))
    if entry.kind != ondisk.LCLUSTER_NONHEAD and entry.offset > offset & (1 << bits) - 1:
        lcn -= 1
        entry = next(entries(backing, zmap, lcn)) if lcn >= 0 else entry
    while entry.kind == ondisk.LCLUSTER_NONHEAD and 0 < entry.offset <= lcn:
        lcn -= entry.offset
        jump = entry.offset
        entry = next(entries(backing, zmap, lcn))
        if entry.kind == ondisk.LCLUSTER_NONHEAD and jump < ondisk.DELTA_MAX:
            raise _wrong(zmap, lcn, "should start an extent")
    if entry.kind == ondisk.LCLUSTER_NONHEAD or lcn < 0:
        raise _wrong(zmap, max(lcn, 0), "belongs to an extent that starts before the file")
    return lcn


def _extent(backing: Backing, info: SuperInfo, zmap: ZMap, run: _Run) -> Extent:
    """The extent of a run, its place checked."""
    lcn, head, blocks, start, end = run
    inode = zmap.inode
    end = min(end, inode.size)
    length = end - start
    is_tail = end == inode.size
    if is_tail and zmap.fragment >= 0:
        high = 0 if zmap.is_compact else head.block << 32
        return Extent(start, length, Kind.FRAGMENT, zmap.fragment | high)
    inline = is_tail and bool(zmap.idata_size)
    if inline:
        address, size = zmap.position + zmap.index_size, zmap.idata_size
    else:
        address, size = head.block << info.raw.blkszbits, blocks << info.raw.blkszbits
    if not size:
        raise _wrong(zmap, lcn, "has a pcluster of no blocks")
    if size > ondisk.PCLUSTER_MAX:
        raise _wrong(zmap, lcn, f"has a pcluster of {size} bytes, over 1 MiB")
    if address + size > backing.end:
        raise _wrong(zmap, lcn, f"has a pcluster at {address:#x} to {address + size:#x}, outside the image")
    if head.kind == ondisk.LCLUSTER_PLAIN:
        rotated = bool(zmap.advise & ondisk.ADVISE_INTERLACED_PCLUSTER) and not inline
        if length > size or (rotated and size > info.block_size):
            raise _wrong(zmap, lcn, f"has {length} raw bytes in a pcluster of {size}")
        kind = Kind.ROTATED if rotated else Kind.RAW
        return Extent(start, length, kind, address, size, inline=inline)
    if length > ondisk.EXTENT_MAX:
        raise _wrong(zmap, lcn, f"has an extent of {length} bytes, over 12 MiB")
    algorithm = zmap.algorithms[head.kind == ondisk.LCLUSTER_HEAD2]
    if not info.algorithms >> algorithm & 1:
        raise _wrong(zmap, lcn, f"uses {ondisk.ALGORITHM_NAMES[algorithm]}, which the superblock does not list")
    if head.kind == ondisk.LCLUSTER_HEAD2 and not info.incompat(ondisk.INCOMPAT_COMPR_HEAD2):
        raise _wrong(zmap, lcn, "has a second head type in an image without it")
    return Extent(start, length, Kind.ENCODED, address, size, algorithm, head.partial, inline)
