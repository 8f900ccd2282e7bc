# SPDX-License-Identifier: Apache-2.0
"""Indexes of compressed files: which lcluster belongs to which pcluster (kernel: ``fs/erofs/zmap.c``).

An index has one entry for each lcluster (here always one block of file data). Compact indexes store 2 or 4 bytes an
entry and one block number for each pack of entries, so the pclusters of a file must follow one another; full
indexes store 8 bytes an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from erofs_edge.erofs.ondisk import (
    ADVISE_BIG_PCLUSTER_1,
    ADVISE_BIG_PCLUSTER_2,
    ADVISE_COMPACTED_2B,
    ALGORITHM_LZ4,
    D0_CBLKCNT,
    DELTA_MAX,
    FULL_INDEX,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LCLUSTER_HEAD1,
    LCLUSTER_NONHEAD,
    LCLUSTER_PLAIN,
    MAP_HEADER,
)

COMPACT_BITS_MAX = 14  # larger lclusters have offsets that no compact entry holds
COMPACT_2B_BITS_MAX = 12


class Extent(NamedTuple):
    """`length` bytes of a file held by `blocks` blocks: one pcluster, or (raw) one pcluster a block."""

    length: int
    blocks: int
    raw: bool


class Entry(NamedTuple):
    """One lcluster. A head (PLAIN, HEAD1) has `value` = offset of its extent in the lcluster, and its block.

    A NONHEAD has `value` = distance back to its head, `ahead` = distance to the next head, and `blocks` = size
    of the pcluster in blocks.
    """

    kind: int
    value: int
    ahead: int = 0
    blocks: int = 0
    block: int = 0


def layout_for(block_bits: int) -> int:
    """The data layout of compressed files for a block size."""
    return LAYOUT_COMPRESSED_COMPACT if block_bits <= COMPACT_BITS_MAX else LAYOUT_COMPRESSED_FULL


def full_index_size(size: int, block_bits: int) -> int:
    """Bytes of a full index with its map header: what compression must win at least, as mkfs.erofs has it."""
    return 16 + FULL_INDEX.size * _lclusters(size, block_bits)


def build_index(
    extents: Sequence[Extent], size: int, *, block_bits: int, big: bool, first_block: int, position: int
) -> bytes:
    """Map header and index of a file of `size` bytes whose data starts at block `first_block`.

    `position` is where the map header stands: a multiple of 8, of which only the remainder by 32 matters.
    """
    entries = list(_entries(extents, size, block_bits, first_block))
    assert len(entries) == _lclusters(size, block_bits), "one entry for each lcluster"  # noqa: S101
    if layout_for(block_bits) == LAYOUT_COMPRESSED_FULL:
        return _full(entries, big)
    advise = ADVISE_COMPACTED_2B if block_bits <= COMPACT_2B_BITS_MAX else 0
    if big:
        advise |= ADVISE_BIG_PCLUSTER_1 | ADVISE_BIG_PCLUSTER_2
    header = MAP_HEADER.pack(0, advise, ALGORITHM_LZ4, 0)
    return header + _compact(entries, max(block_bits, 12), advise, first_block, position + len(header))


def _lclusters(size: int, block_bits: int) -> int:
    return -(-size >> block_bits)


def _entries(extents: Sequence[Extent], size: int, block_bits: int, first_block: int) -> Iterable[Entry]:
    """The entry of every lcluster. A raw extent of several blocks has a head in each."""
    block_size = 1 << block_bits
    last_lcluster = _lclusters(size, block_bits) - 1
    start, block = 0, first_block
    for extent in extents:
        end = start + extent.length
        if extent.raw:
            for at in range(start, end, block_size):
                yield Entry(LCLUSTER_PLAIN, at & block_size - 1, block=block)
                block += 1
            start = end
            continue
        lcluster = start >> block_bits
        yield Entry(LCLUSTER_HEAD1, start & block_size - 1, block=block)
        # the lcluster in which the next extent starts; the end of the file counts as one when it lies inside
        following = last_lcluster + 1 if end == size and not end & block_size - 1 else end >> block_bits
        for at in range(lcluster + 1, following):
            yield Entry(LCLUSTER_NONHEAD, at - lcluster, following - at, extent.blocks)
        block += extent.blocks
        start = end
    tail = size & block_size - 1
    if tail and extents:
        final = extents[-1]
        head = size - final.length if not final.raw else size - ((final.length - 1) % block_size + 1)
        if head >> block_bits != last_lcluster:
            yield Entry(LCLUSTER_PLAIN, tail)  # an empty extent at the end: it bounds the last real one


def _full(entries: Sequence[Entry], big: bool) -> bytes:
    """z_erofs_lcluster_index records."""
    advise = ADVISE_BIG_PCLUSTER_1 | ADVISE_BIG_PCLUSTER_2 if big else 0
    out = bytearray(MAP_HEADER.pack(0, advise, ALGORITHM_LZ4, 0) + bytes(8))
    for e in entries:
        if e.kind == LCLUSTER_NONHEAD:
            back = D0_CBLKCNT | e.blocks if big and e.value == 1 else min(e.value, DELTA_MAX)
            out += FULL_INDEX.pack(e.kind, 0, back | min(e.ahead, DELTA_MAX) << 16)
        else:
            out += FULL_INDEX.pack(e.kind, e.value, e.block)
    return bytes(out)


def _compact(entries: Sequence[Entry], low_bits: int, advise: int, first_block: int, position: int) -> bytes:
    """Packs: 4-byte entries up to a 32-byte border, then 2-byte ones in sixteens, then 4-byte ones again."""
    count = len(entries)
    leading = min((32 - position % 32) // 4 % 8, count)
    middle = (count - leading) // 16 * 16 if advise & ADVISE_COMPACTED_2B else 0
    packs = [(at, 2, 16) for at in range(0, leading, 2)]
    packs += [(leading + at, 16, 14) for at in range(0, middle, 16)]
    packs += [(at, 2, 16) for at in range(leading + middle, count, 2)]
    big = bool(advise & ADVISE_BIG_PCLUSTER_1)
    base = _BigBase(first_block) if big else _Base(first_block)
    out = bytearray()
    for start, slots, bits in packs:
        pack = entries[start : start + slots]
        base_block = base.advance(pack)
        packed = 0
        for slot, e in enumerate(pack):
            low = e.value
            if e.kind == LCLUSTER_NONHEAD:
                if big and e.value == 1:
                    low = D0_CBLKCNT | e.blocks
                else:
                    low = min(e.ahead if slot == slots - 1 else e.value, DELTA_MAX)
            packed |= (low | e.kind << low_bits) << (slot * bits)
        out += packed.to_bytes(slots * bits // 8, "little") + base_block.to_bytes(4, "little")
    return bytes(out)


class _Base:
    """Base blocks of packs whose pclusters are one block each: a pack's n-th head is at base + n."""

    def __init__(self, first_block: int) -> None:
        self._block = first_block - 1

    def advance(self, pack: Sequence[Entry]) -> int:
        base = self._block
        self._block += sum(e.kind != LCLUSTER_NONHEAD for e in pack)
        return base


class _BigBase:
    """Base blocks of packs with big pclusters.

    A head is at base + the blocks of those pclusters before it whose count shows in the pack. The count of a head
    in the last slot shows only in the next pack, and not at all when another head follows there.
    """

    def __init__(self, first_block: int) -> None:
        self._block = first_block
        self._uncounted = False

    def advance(self, pack: Sequence[Entry]) -> int:
        base, heads = self._block, 0
        for e in pack:
            if e.kind == LCLUSTER_NONHEAD:
                if e.value == 1:
                    self._block += e.blocks
                    self._uncounted = False
                continue
            if self._uncounted:
                self._block += 1
                if not heads:
                    base = self._block
            self._uncounted = True
            heads += 1
        return base
