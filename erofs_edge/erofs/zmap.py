# SPDX-License-Identifier: Apache-2.0
"""Map compressed files: from lcluster entries to extents.

Source: ``fs/erofs/zmap.c`` (z_erofs_map_blocks_fo).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.lclusters import SMALL_PACK, Entry, entries, unvaried, wrong
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.erofs.zextents import encoded_extents
from erofs_edge.errors import ErofsFormatError

_HEADS = (ondisk.LCLUSTER_PLAIN, ondisk.LCLUSTER_HEAD1, ondisk.LCLUSTER_HEAD2)
_SHORT = 512  # bytes of an index; bounds what is kept in memory, too
_sole_rests: dict[tuple[int, ...], int] = {}  # form of an index with one run → the bytes in which others do not differ

SATURATED = (ondisk.DELTA_MAX, ondisk.DELTA_MAX + 1)
"""distances that stand for larger ones, too: the last slot of a pack has the distance of the slot before it, plus 1"""


def compressed_extents(
    backing: Backing, info: SuperInfo, zmap: ZMap, offset: int, *, strict: bool = False
) -> Iterator[Extent]:
    """Yield extents from the one with byte `offset` on, in order, covering the rest of the file.

    `strict` also checks the forward distances, which only read-ahead uses. Raises ErofsFormatError if the index
    contradicts itself or an extent leaves the image.
    """
    inode = zmap.inode
    if zmap.whole_fragment:
        yield Extent(0, inode.size, Kind.FRAGMENT, zmap.fragment)
        return
    if zmap.record:
        yield from encoded_extents(backing, info, zmap, offset)
        return
    if zmap.index_size <= _SHORT and not offset and zmap.is_compact:
        run = _sole_run(backing, zmap, strict)
        if run is not None:
            yield _extent(backing, info, zmap, run)
            return
    for run in _decoded(backing, zmap, offset, strict):
        if run.start >= inode.size:  # the terminator
            break
        yield _extent(backing, info, zmap, run)


class _Run(NamedTuple):
    """A head with its NONHEADs: bytes [start, end) of the file in `blocks` blocks."""

    lcn: int
    head: Entry
    blocks: int
    start: int
    end: int


def _decoded(backing: Backing, zmap: ZMap, offset: int, strict: bool) -> Iterator[_Run]:
    """Yield the runs from the one with byte `offset` on."""
    first = _head_of(backing, zmap, offset) if offset else 0
    found = entries(backing, zmap, first)
    return _runs(zmap, _announced(zmap, found) if strict else found, first)


def _sole_run(backing: Backing, zmap: ZMap, strict: bool) -> _Run | None:
    """Return the run of a compact index that describes only one, as most indexes of small files do. None if the index
    has to be decoded. Such indexes differ only in a few numbers from those of other files with as many lclusters, so
    all else in them is compared, as one number, with an index that was decoded before."""
    count, bits = zmap.lclusters, zmap.lobits
    behind = count - zmap.four_byte - zmap.two_byte  # in small packs, as the first lclusters should be
    if count < 2 or not behind or (zmap.two_byte and not zmap.four_byte):
        return None
    data = backing.read(zmap.position, zmap.index_size, "cluster index")
    first, second, base = SMALL_PACK.unpack_from(data)
    last = int.from_bytes(data[-8:-6] if behind & 1 else data[-6:-4], "little")
    kind, offset = first >> bits, last & (1 << bits) - 1
    if kind not in _HEADS or last >> bits not in _HEADS or first & (1 << bits) - 1 or offset >> zmap.lcluster_bits:
        return None
    if (count - 1 << zmap.lcluster_bits) + offset < zmap.inode.size:
        return None
    is_big = zmap.advise & ondisk.ADVISE_BIG_PCLUSTER_1
    blocks = second - (ondisk.LCLUSTER_NONHEAD << bits | ondisk.D0_CBLKCNT) if count > 2 else 1
    if not 0 <= blocks < ondisk.D0_CBLKCNT or not (is_big or count == 2):
        return None
    form = zmap.four_byte, zmap.two_byte, count, bits, is_big, strict
    rest = int.from_bytes(data, "little") & unvaried(*form[:3])
    if _sole_rests.get(form) != rest:
        if not _has_sole_run(backing, zmap, strict):
            return None
        _sole_rests[form] = rest
    return _Run(0, Entry(kind, 0, base + (0 if is_big else 1), False, -1), blocks, 0, zmap.inode.size)


def _has_sole_run(backing: Backing, zmap: ZMap, strict: bool) -> bool:
    """Whether an index, decoded, describes one run and has the terminator."""
    try:
        return [run.start < zmap.inode.size for run in _decoded(backing, zmap, 0, strict)] == [True, False]
    except ErofsFormatError:  # found again by whoever decodes it for use, after the extents before it
        return False


def _runs(zmap: ZMap, found: Iterator[Entry], lcn: int) -> Iterator[_Run]:
    """Yield the runs described by the entries from lcluster `lcn` on, which starts with a head."""
    bits = zmap.lcluster_bits
    longest = -(-ondisk.EXTENT_MAX >> bits)  # lclusters, rounded up
    head: Entry | None = None
    head_lcn, blocks, start = lcn, 1, 0
    following = lcn
    for entry in found:
        number, following = following, following + entry.length
        if entry.kind == ondisk.LCLUSTER_NONHEAD:
            distance = number - head_lcn
            is_saturated = entry.offset in SATURATED and entry.offset < distance
            if head is None or (entry.offset != distance and not is_saturated):
                raise wrong(zmap, number, f"says its extent starts {entry.offset} clusters before, not {distance}")
            if distance == 1:
                blocks = _blocks_of(zmap, head, entry, number)
            elif entry.block >= 0:
                raise wrong(zmap, number, "gives a count of blocks out of place")
            if following - head_lcn > longest and zmap.fragment < 0 and head.block >= 0 and blocks:
                raise wrong(zmap, head_lcn + longest, "makes its extent longer than 12 MiB")
            continue
        if entry.offset >> bits or (entry.offset and not number):
            raise wrong(zmap, number, f"starts an extent at offset {entry.offset}")
        next_start = number << bits | entry.offset
        if head is not None:
            yield _Run(head_lcn, head, blocks, start, next_start)
        head, head_lcn, blocks, start = entry, number, 1, next_start
    if head is not None:
        yield _Run(head_lcn, head, blocks, start, zmap.inode.size)


def _announced(zmap: ZMap, found: Iterator[Entry]) -> Iterator[Entry]:
    """Yield the entries of a file unchanged, checking their forward distances.

    A distance of 0 stands for 1: mkfs before 1.0 wrote it.
    """
    told = -1  # where the next head is announced
    lcn = 0
    for entry in found:
        if entry.kind != ondisk.LCLUSTER_NONHEAD:
            if told not in (-1, lcn):
                raise wrong(zmap, lcn, f"starts an extent where none was announced before cluster {told}")
            told = -1
        elif entry.ahead >= 0 and entry.ahead != ondisk.DELTA_MAX:  # DELTA_MAX means saturated
            last = lcn + entry.length - 1
            here = last + (entry.ahead or 1)
            if told not in (-1, here):
                raise wrong(zmap, last, f"announces an extent at cluster {here}, another one at {told}")
            told = here
        yield entry
        lcn += entry.length
    if told > zmap.lclusters:
        raise wrong(zmap, zmap.lclusters - 1, f"announces an extent at cluster {told} behind the end")


def _blocks_of(zmap: ZMap, head: Entry, entry: Entry, lcn: int) -> int:
    """Return the blocks of a pcluster whose first NONHEAD is `entry`; 0 for a hole, and for a fragment."""
    big = ondisk.ADVISE_BIG_PCLUSTER_1 if head.kind == ondisk.LCLUSTER_HEAD1 else ondisk.ADVISE_BIG_PCLUSTER_2
    if not zmap.advise & big:
        if entry.block >= 0:
            raise wrong(zmap, lcn, "gives a count of blocks without big pclusters")
        return 1
    if entry.block < 0:
        raise wrong(zmap, lcn, "lacks the count of blocks of its pcluster")
    return entry.block


def _head_of(backing: Backing, zmap: ZMap, offset: int) -> int:
    """Return the lcluster in which the extent with byte `offset` starts."""
    bits = zmap.lcluster_bits
    lcn = offset >> bits
    entry = next(entries(backing, zmap, lcn))
    if entry.kind != ondisk.LCLUSTER_NONHEAD and entry.offset > offset & (1 << bits) - 1:
        lcn -= 1
        entry = next(entries(backing, zmap, lcn)) if lcn >= 0 else entry
    while entry.kind == ondisk.LCLUSTER_NONHEAD and 0 < entry.offset <= lcn:
        lcn -= entry.offset
        jump = entry.offset
        entry = next(entries(backing, zmap, lcn))
        if entry.kind == ondisk.LCLUSTER_NONHEAD and jump not in SATURATED:
            raise wrong(zmap, lcn, "should start an extent")
    if entry.kind == ondisk.LCLUSTER_NONHEAD or lcn < 0:
        raise wrong(zmap, max(lcn, 0), "belongs to an extent that starts before the file")
    return lcn


def _extent(backing: Backing, info: SuperInfo, zmap: ZMap, run: _Run) -> Extent:
    """Return the extent of a run, after checking its place."""
    lcn, head, blocks, start, end = run
    inode = zmap.inode
    end = min(end, inode.size)
    length = end - start
    is_tail = end == inode.size
    if is_tail and zmap.fragment >= 0:
        if head.block < 0 or head.kind == ondisk.LCLUSTER_PLAIN:  # kernels look for plain bytes in a pcluster
            raise wrong(zmap, lcn, f"is both {'a hole' if head.block < 0 else 'plain data'} and a fragment")
        high = 0 if zmap.is_compact else head.block << 32
        return Extent(start, length, Kind.FRAGMENT, zmap.fragment | high)
    inline = is_tail and bool(zmap.idata_size)
    if inline:
        address, size = zmap.position + zmap.index_size, zmap.idata_size
    elif head.block < 0 or not blocks:
        return Extent(start, length, Kind.HOLE)
    else:
        address, size = head.block << info.raw.blkszbits, blocks << info.raw.blkszbits
    if size > ondisk.PCLUSTER_MAX:
        raise wrong(zmap, lcn, f"has a pcluster of {size} bytes, over 1 MiB")
    if not backing.holds(address, size):
        raise wrong(zmap, lcn, f"has a pcluster at {address:#x} to {address + size:#x}, outside the image")
    address = backing.resolve(address)
    if head.kind == ondisk.LCLUSTER_PLAIN:
        rotated = bool(zmap.advise & ondisk.ADVISE_INTERLACED_PCLUSTER) and not inline
        if length > size or (rotated and size > info.block_size):
            raise wrong(zmap, lcn, f"has {length} raw bytes in a pcluster of {size}")
        kind = Kind.ROTATED if rotated else Kind.RAW
        return Extent(start, length, kind, address, size, inline=inline)
    if length > ondisk.EXTENT_MAX:
        raise wrong(zmap, lcn, f"has an extent of {length} bytes, over 12 MiB")
    algorithm = zmap.algorithms[head.kind == ondisk.LCLUSTER_HEAD2]
    if not info.algorithms >> algorithm & 1:
        raise wrong(zmap, lcn, f"uses {ondisk.ALGORITHM_NAMES[algorithm]}, which the superblock does not list")
    if head.kind == ondisk.LCLUSTER_HEAD2 and not info.incompat(ondisk.INCOMPAT_COMPR_HEAD2):
        raise wrong(zmap, lcn, "has a second head type in an image without it")
    return Extent(start, length, Kind.ENCODED, address, size, algorithm, head.partial, inline)
