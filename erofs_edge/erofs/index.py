# SPDX-License-Identifier: Apache-2.0
"""Indexes of compressed files: which lcluster belongs to which pcluster (kernel: ``fs/erofs/zmap.c``).

An index has one entry for each lcluster (here always one block of file data). Compact indexes store 2 or 4 bytes an
entry and one block number for each pack of entries, so the pclusters of a file must follow one another; full
indexes store 8 bytes an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erofs_edge.erofs.ondisk import (
    ADVISE_BIG_PCLUSTER_1,
    ADVISE_BIG_PCLUSTER_2,
    ADVISE_COMPACTED_2B,
    ADVISE_FRAGMENT_PCLUSTER,
    ADVISE_INLINE_PCLUSTER,
    ALGORITHM_LZ4,
    D0_CBLKCNT,
    DELTA_MAX,
    FULL_INDEX,
    INDEX_PARTIAL_REF,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LCLUSTER_HEAD1,
    LCLUSTER_NONHEAD,
    LCLUSTER_PLAIN,
    MAP_HEADER,
    NULL_ADDR,
)

COMPACT_BITS_MAX = 14  # larger lclusters have offsets that no compact entry holds
COMPACT_2B_BITS_MAX = 12
WHOLE_FRAGMENT = 1 << 63


class Extent(NamedTuple):
    """`length` bytes of a file held by `blocks` blocks: one pcluster, or (raw) one pcluster a block.

    A last extent of 0 blocks lies elsewhere: behind the index, or in the packed inode. `place` is the first block of
    one that other files have too, -1 for those that follow each other; `partial`: its pcluster decodes to more.
    """

    length: int
    blocks: int
    raw: bool
    place: int = -1
    partial: bool = False

    @property
    def own(self) -> int:
        """Blocks that only this file has."""
        return self.blocks if self.place < 0 else 0


class Head(NamedTuple):
    """An lcluster in which a pcluster's data starts, at byte `offset`; up to the next head nothing else starts."""

    lcluster: int
    offset: int
    kind: int
    block: int
    blocks: int
    partial: bool = False


def layout_for(block_bits: int, fragment: int = -1, *, whole: bool = False, full: bool = False) -> int:
    """The data layout of compressed files for a block size; `fragment` is where the tail stands in the packed inode.

    Only full indexes have room for the upper bits of that, and a `whole` file there has no index at all. `full` asks
    for the full form in any case.
    """
    compact = block_bits <= COMPACT_BITS_MAX and fragment < 1 << 32 and not whole and not full
    return LAYOUT_COMPRESSED_COMPACT if compact else LAYOUT_COMPRESSED_FULL


def full_index_size(size: int, block_bits: int) -> int:
    """Bytes of a full index with its map header: what compression must win at least, as mkfs.erofs has it."""
    return 16 + FULL_INDEX.size * _lclusters(size, block_bits)


def build_index(
    extents: Sequence[Extent],
    size: int,
    *,
    block_bits: int,
    big: bool,
    first_block: int,
    position: int,
    inline: int = 0,
    full: bool = False,
    fragment: int = -1,
    algorithm: int = ALGORITHM_LZ4,
) -> bytes:
    """Map header and index of a file of `size` bytes whose data starts at block `first_block`.

    `position` is where the map header stands: a multiple of 8, of which only the remainder by 32 matters. The last
    extent may be `inline` bytes behind the index, or stand at byte `fragment` of the packed inode.
    """
    advise = ADVISE_BIG_PCLUSTER_1 | ADVISE_BIG_PCLUSTER_2 if big else 0
    low = 0
    if fragment >= 0:
        if len(extents) == 1:  # the header alone tells all
            return (fragment | WHOLE_FRAGMENT).to_bytes(8, "little")
        advise |= ADVISE_FRAGMENT_PCLUSTER
        low = fragment & NULL_ADDR
    elif inline:
        advise |= ADVISE_INLINE_PCLUSTER
        low = inline << 16
    heads = _heads(extents, size, block_bits, first_block)
    count = _lclusters(size, block_bits)
    if layout_for(block_bits, fragment, full=full) == LAYOUT_COMPRESSED_FULL:
        if fragment >= 0:  # the terminator, if there is one, is no HEAD1
            tail = -1 if heads[-1].kind == LCLUSTER_HEAD1 else -2
            heads[tail] = heads[tail]._replace(block=fragment >> 32)
        return MAP_HEADER.pack(low, advise, algorithm, 0) + _full(heads, count, big)
    if block_bits <= COMPACT_2B_BITS_MAX:
        advise |= ADVISE_COMPACTED_2B
    header = MAP_HEADER.pack(low, advise, algorithm, 0)
    return header + _compact(heads, count, max(block_bits, 12), advise, position + len(header))


def _lclusters(size: int, block_bits: int) -> int:
    return -(-size >> block_bits)


def _heads(extents: Sequence[Extent], size: int, block_bits: int, first_block: int) -> list[Head]:
    """The heads of all extents; raw ones have one in each block.

    When the last extent ends inside an lcluster in which it does not start, that gets an empty one of block 0: it
    bounds the real one.
    """
    block_size = 1 << block_bits
    heads: list[Head] = []
    start, block = 0, first_block
    for extent in extents:
        length, blocks, raw = extent.length, extent.blocks, extent.raw
        place = block if extent.place < 0 else extent.place
        if raw and blocks:
            for i, at in enumerate(range(start, start + length, block_size)):
                heads.append(Head(at >> block_bits, at & block_size - 1, LCLUSTER_PLAIN, place + i, 1))
        else:
            kind = LCLUSTER_PLAIN if raw else LCLUSTER_HEAD1
            heads.append(Head(start >> block_bits, start & block_size - 1, kind, place, blocks, extent.partial))
        block += extent.own
        start += length
    if size & block_size - 1 and heads[-1].lcluster != size >> block_bits:
        heads.append(Head(size >> block_bits, size & block_size - 1, LCLUSTER_PLAIN, 0, 1))
    return heads


def _full(heads: Sequence[Head], count: int, big: bool) -> bytes:
    """z_erofs_lcluster_index records behind 8 unused bytes."""
    out = bytearray(8)
    for head, end in zip(heads, _ends(heads, count), strict=True):
        advise = head.kind | INDEX_PARTIAL_REF if head.partial else head.kind
        out += FULL_INDEX.pack(advise, head.offset, head.block)
        for back in range(1, end - head.lcluster):
            delta = D0_CBLKCNT | head.blocks if big and back == 1 else min(back, DELTA_MAX)
            out += FULL_INDEX.pack(LCLUSTER_NONHEAD, 0, delta | min(end - head.lcluster - back, DELTA_MAX) << 16)
    return bytes(out)


def _compact(heads: Sequence[Head], count: int, low_bits: int, advise: int, position: int) -> bytes:
    """Packs: 4-byte entries up to a 32-byte border, then 2-byte ones in sixteens, then 4-byte ones again."""
    big = bool(advise & ADVISE_BIG_PCLUSTER_1)
    usual, last = _compact_entries(heads, count, low_bits, big)
    leading = min((32 - position % 32) // 4 % 8, count)
    middle = (count - leading) // 16 * 16 if advise & ADVISE_COMPACTED_2B else 0
    packs = [(at, 2, 16) for at in range(0, leading, 2)]
    packs += [(leading + at, 16, 14) for at in range(0, middle, 16)]
    packs += [(at, 2, 16) for at in range(leading + middle, count, 2)]
    out = bytearray()
    before = 0  # heads that stand before the pack
    for start, slots, bits in packs:
        while before < len(heads) and heads[before].lcluster < start:
            before += 1
        base = _big_base(heads, before, start) if big else heads[0].block - 1 + before
        packed = last[start + slots - 1]
        for entry in usual[start : start + slots - 1][::-1]:
            packed = packed << bits | entry
        out += packed.to_bytes(slots * bits // 8, "little") + base.to_bytes(4, "little")
    return bytes(out)


def _compact_entries(heads: Sequence[Head], count: int, low_bits: int, big: bool) -> tuple[list[int], list[int]]:
    """The entry of each lcluster, and what it is when it stands in the last slot of a pack; one empty one more.

    In the last slot a NONHEAD tells the distance ahead instead of back.
    """
    usual: list[int] = []
    last: list[int] = []
    nonhead = LCLUSTER_NONHEAD << low_bits
    for head, end in zip(heads, _ends(heads, count), strict=True):
        entry = head.offset | head.kind << low_bits
        run = end - head.lcluster - 1
        assert run <= DELTA_MAX, "extents are shorter than distances can tell"  # noqa: S101
        usual += (entry, *range(nonhead + 1, nonhead + run + 1))
        last += (entry, *range(nonhead + run, nonhead, -1))
        if big and run:
            usual[head.lcluster + 1] = last[head.lcluster + 1] = nonhead | D0_CBLKCNT | head.blocks
    assert len(usual) == count, "one entry for each lcluster"  # noqa: S101
    return [*usual, 0], [*last, 0]


def _big_base(heads: Sequence[Head], before: int, start: int) -> int:
    """The base block of a pack that starts at an lcluster, `before` heads standing before it.

    A head is at base + the blocks of those pclusters before it whose count shows in the pack. A head in the last
    slot before the pack shows its count in the pack's first entry, unless that is a head itself.
    """
    if not before:
        return heads[0].block
    head = heads[before - 1]
    counted_here = head.lcluster + 1 == start and (before == len(heads) or heads[before].lcluster != start)
    return head.block if counted_here else head.block + head.blocks


def _ends(heads: Sequence[Head], count: int) -> list[int]:
    """For each head the lcluster of the next one."""
    return [*(head.lcluster for head in heads[1:]), count]
