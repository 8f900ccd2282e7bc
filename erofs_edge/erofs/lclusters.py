# SPDX-License-Identifier: Apache-2.0
"""Decode the cluster index of a compressed inode, full or compact, to entries for one lcluster or several.

Source: ``fs/erofs/zmap.c`` (z_erofs_load_full_lcluster, z_erofs_load_compact_lcluster). The index is read in windows,
so memory use does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.errors import ErofsFormatError

_WINDOW = 512  # full entries or packs read at once
_TYPE_MASK = 0x3
SMALL_PACK = Struct("<HHI")
_SMALL_SLOTS = 2
_BIG_PACK = Struct("<28sI")
_BIG_SLOTS, _SLOT_BITS, _BIG_LOBITS = 16, 14, 12
_BIG_SHIFTS = range(0, _BIG_SLOTS * _SLOT_BITS, _SLOT_BITS)
_BIG_LO_MASK = (1 << _BIG_LOBITS) - 1
# for n slots: all their bits, 1 in each, their numbers, and the kind of a NONHEAD in each
_SLOT_MASKS = [(1 << _SLOT_BITS * n) - 1 for n in range(_BIG_SLOTS + 1)]
_ONES = [sum(1 << _SLOT_BITS * slot for slot in range(n)) for n in range(_BIG_SLOTS + 1)]
_RAMPS = [sum(slot << _SLOT_BITS * slot for slot in range(n)) for n in range(_BIG_SLOTS + 1)]
_NONHEADS = [(ones * ondisk.LCLUSTER_NONHEAD) << _BIG_LOBITS for ones in _ONES]
_KINDS = (_ONES[_BIG_SLOTS] * _TYPE_MASK) << _BIG_LOBITS


class Entry(NamedTuple):
    """An lcluster, or consecutive NONHEAD ones.

    offset  clusterofs of a head; for NONHEAD the distance back to the head, of the first one
    block   first block of a head's pcluster, -1 for a hole; for NONHEAD the pcluster's number of blocks, -1 if not
            given
    ahead   distance forward to the next head, of the last lcluster; -1 if not stored
    length  number of lclusters
    """

    kind: int
    offset: int
    block: int
    partial: bool
    ahead: int
    length: int = 1


_NONHEAD = [Entry(ondisk.LCLUSTER_NONHEAD, distance, -1, False, -1) for distance in range(ondisk.DELTA_MAX + 1)]


class _Section(NamedTuple):
    """A run of packs of one form: the first lcluster, their number of lclusters, and the position."""

    first: int
    lclusters: int
    per_pack: int
    pack_size: int
    address: int


def _sections(zmap: ZMap) -> list[_Section]:
    four, two = zmap.four_byte, zmap.two_byte
    middle = zmap.position + four * 4
    return [
        _Section(0, four, _SMALL_SLOTS, SMALL_PACK.size, zmap.position),
        _Section(four, two, _BIG_SLOTS, _BIG_PACK.size, middle),
        _Section(four + two, zmap.lclusters - four - two, _SMALL_SLOTS, SMALL_PACK.size, middle + two * 2),
    ]


@lru_cache(1024)
def unvaried(four_byte: int, two_byte: int, lclusters: int) -> int:
    """Return a mask, as a number, for the bytes of a compact index which only depend on the number of lclusters if all
    but the last belong to one extent: not the first pack, the bases of all, and the last lcluster. The first and the
    last one must be in small packs."""
    behind = lclusters - four_byte - two_byte
    small, big = b"\xff" * 4 + bytes(4), b"\xff" * 28 + bytes(4)
    mask = small * (four_byte // _SMALL_SLOTS) + big * (two_byte // _BIG_SLOTS) + small * (-(-behind // _SMALL_SLOTS))
    last = 8 if behind & 1 else 6
    return int.from_bytes(bytes(8) + mask[8:-last] + bytes(2) + mask[len(mask) - last + 2 :], "little")


def entries(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[Entry]:
    """Yield the entries from lcluster `lcn` to the last one. Raises ErofsFormatError."""
    windows = _compact_windows if zmap.is_compact else _full_windows
    return chain.from_iterable(windows(backing, zmap, lcn))


def wrong(zmap: ZMap, lcn: int, message: str) -> ErofsFormatError:
    """Return the error for an impossible entry."""
    where = zmap.position + lcn * ondisk.FULL_INDEX.size
    if zmap.is_compact:
        section = next(section for section in reversed(_sections(zmap)) if lcn >= section.first)
        where = section.address + (lcn - section.first) // section.per_pack * section.pack_size
    return broken(f"inode {zmap.inode.nid}: cluster {lcn} {message}", where)


def _full_windows(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[list[Entry]]:
    size = ondisk.FULL_INDEX.size
    for first in range(lcn, zmap.lclusters, _WINDOW):
        count = min(_WINDOW, zmap.lclusters - first)
        data = backing.read(zmap.position + first * size, count * size, "cluster index")
        yield [
            _full_entry(zmap, first + number, *fields)
            for number, fields in enumerate(ondisk.FULL_INDEX.iter_unpack(data))
        ]


def _full_entry(zmap: ZMap, lcn: int, advise: int, offset: int, value: int) -> Entry:
    kind = advise & _TYPE_MASK
    if kind != ondisk.LCLUSTER_NONHEAD:
        if advise & ~(_TYPE_MASK | ondisk.INDEX_PARTIAL_REF | ondisk.INDEX_HOLE):
            raise wrong(zmap, lcn, f"has unknown bits in its advise {advise:#x}")
        if advise & ondisk.INDEX_HOLE:  # kernels before 7 decode the zeros in its block
            value = -1
        return Entry(kind, offset, value, bool(advise & ondisk.INDEX_PARTIAL_REF), -1)
    back, ahead = value & 0xFFFF, value >> 16
    if back & ondisk.D0_CBLKCNT:
        return Entry(kind, 1, back & ~ondisk.D0_CBLKCNT, False, ahead)
    return Entry(kind, back, -1, False, ahead)


def _compact_windows(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[list[Entry]]:
    for section in _sections(zmap):
        end = section.first + section.lclusters
        packs = -(-section.lclusters // section.per_pack)
        for start in range(max(lcn - section.first, 0) // section.per_pack, packs, _WINDOW):
            count = min(_WINDOW, packs - start)
            at = section.address + start * section.pack_size
            data = backing.read(at, count * section.pack_size, "cluster index")
            first = section.first + start * section.per_pack
            if section.per_pack == _BIG_SLOTS:  # all of these are full
                yield from _big_packs(zmap, first, data, lcn)
            else:
                yield _decode_packs(zmap, first, SMALL_PACK.iter_unpack(data))[max(lcn - first, 0) : end - first]


def _big_packs(zmap: ZMap, first: int, data: bytes, lcn: int) -> Iterator[list[Entry]]:
    for packed, base in _BIG_PACK.iter_unpack(data):
        slots = int.from_bytes(packed, "little")
        pack = _decode_runs(zmap, slots, base) if lcn <= first else None
        if pack is None:
            values = (slots >> shift & _SLOT_MASKS[1] for shift in _BIG_SHIFTS)
            pack = _decode_packs(zmap, first, [(*values, base)])[max(lcn - first, 0) :]
        yield pack
        first += _BIG_SLOTS


def _decode_runs(zmap: ZMap, slots: int, block: int) -> list[Entry] | None:
    """Decode a large pack with all NONHEADs of an extent at once. None if it needs `_decode_packs`: because they are
    not what they usually are, or are very far from their head."""
    heads = (slots ^ _NONHEADS[_BIG_SLOTS]) & _KINDS
    pending = 0 if zmap.advise & ondisk.ADVISE_BIG_PCLUSTER_1 else 1
    pack: list[Entry] = []
    slot = distance = 0  # distance back to the head, for the slot before
    while slot < _BIG_SLOTS:
        rest = slots >> _SLOT_BITS * slot
        kind, lo = rest >> _BIG_LOBITS & _TYPE_MASK, rest & _BIG_LO_MASK
        if kind != ondisk.LCLUSTER_NONHEAD:
            block += pending
            pending, distance = 1, 0
            pack.append(Entry(kind, lo, block, False, -1))
            slot += 1
        elif lo & ondisk.D0_CBLKCNT:
            blocks = lo & ~ondisk.D0_CBLKCNT
            block += blocks
            pending, distance = 0, 1
            pack.append(Entry(kind, 1, blocks, False, -1))
            slot += 1
        else:
            following = heads >> _SLOT_BITS * slot
            count = ((following & -following).bit_length() - 1) // _SLOT_BITS if following else _BIG_SLOTS - slot
            slot += count
            ahead = slots >> _SLOT_BITS * (_BIG_SLOTS - 1) & _BIG_LO_MASK if slot == _BIG_SLOTS else -1
            alike = count - (ahead >= 0)  # the last slot of a pack holds the forward distance
            if lo + count > ondisk.DELTA_MAX or ahead > ondisk.DELTA_MAX:
                return None
            if rest & _SLOT_MASKS[alike] != _NONHEADS[alike] + _RAMPS[alike] + lo * _ONES[alike]:
                return None
            pack.append(Entry(kind, lo if alike else distance + 1, -1, False, ahead, count))
    return pack


def _decode_packs(zmap: ZMap, first: int, packs: Iterable[tuple[int, ...]]) -> list[Entry]:
    """Decode packs, the first of which starts at lcluster `first`; each has its values and its base block number.

    The block of a head is the base plus the blocks of the earlier pclusters that appear in its pack; without big
    pclusters, it is the base plus its rank among the heads.
    """
    lobits = zmap.lobits
    lo_mask = (1 << lobits) - 1
    pending_first = 0 if zmap.advise & ondisk.ADVISE_BIG_PCLUSTER_1 else 1
    found: list[Entry] = []
    for *values, base in packs:
        block = base
        pending = pending_first  # blocks of the previous head, if the pack has not stated them yet
        before = distance = 0  # distance back to the head, for the last two slots; 0 for a head
        for value in values:
            kind, lo = value >> lobits & _TYPE_MASK, value & lo_mask
            if kind != ondisk.LCLUSTER_NONHEAD:
                block += pending
                pending, distance = 1, 0
                found.append(Entry(kind, lo, block, False, -1))
            elif lo <= ondisk.DELTA_MAX:
                before, distance = distance, lo
                found.append(_NONHEAD[lo])
            elif lo & ondisk.D0_CBLKCNT:
                blocks = lo & ~ondisk.D0_CBLKCNT
                block += blocks
                pending, distance = 0, 1
                found.append(Entry(kind, 1, blocks, False, -1))
            else:
                raise wrong(zmap, first, f"stands in a pack with a distance of {lo}")
        last = found[-1]
        if last.kind == ondisk.LCLUSTER_NONHEAD and last.block < 0:  # the last slot holds the forward distance
            found[-1] = Entry(ondisk.LCLUSTER_NONHEAD, before + 1, -1, False, distance)
        first += len(values)
    return found
