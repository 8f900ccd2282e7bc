# SPDX-License-Identifier: Apache-2.0
"""Indexes of compressed files: which lcluster belongs to which pcluster (kernel: ``fs/erofs/zmap.c``).

An index has one entry for each lcluster (here always one block of file data). Compact indexes take 2 or 4 bytes per
entry and one block number for each pack of entries, so the pclusters of a file must be contiguous. Full indexes take 8
bytes per entry.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import chain, repeat
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

PACKS_MAX = 4096  # packs encoded at a time
COMPACT_BITS_MAX = 14  # offsets in larger lclusters do not fit a compact entry
COMPACT_2B_BITS_MAX = 12
WHOLE_FRAGMENT = 1 << 63
ALONE_MAX = 64  # lclusters up to which the index of a single extent is precomputed except for a few numbers


class Extent(NamedTuple):
    """`length` bytes of a file stored in `blocks` blocks: one pcluster, or (raw) one pcluster per block.

    A last extent with 0 blocks is stored elsewhere: after the index, or in the packed inode. `place` is the first block
    of an extent that other files share, -1 for contiguous ones; `partial`: its pcluster decodes to more.
    """

    length: int
    blocks: int
    raw: bool
    place: int = -1
    partial: bool = False

    @property
    def own(self) -> int:
        """Number of blocks that belong to this file alone."""
        return self.blocks if self.place < 0 else 0


class Site(NamedTuple):
    """Where a compressed file is stored.

    block_bits   log2 of the block size in bytes
    first_block  where its own data starts
    position     byte of the map header: a multiple of 8, of which only the remainder modulo 32 matters
    fragment     byte of the packed inode where its last extent is; -1 if it is not there
    algorithm    of its pclusters
    """

    block_bits: int
    first_block: int
    position: int
    fragment: int = -1
    algorithm: int = ALGORITHM_LZ4


class Head(NamedTuple):
    """An lcluster in which a pcluster's data starts, at byte `offset`. Nothing else starts before the next head."""

    lcluster: int
    offset: int
    kind: int
    block: int
    blocks: int
    partial: bool = False


def layout_for(block_bits: int, fragment: int = -1, *, whole: bool = False, full: bool = False) -> int:
    """Return the data layout of compressed files for a block size; `fragment`: the tail's place in the packed inode.

    Only full indexes have room for the upper bits of that place, and a file that is there as a `whole` has no index at
    all. `full` requests the full form in any case.
    """
    compact = block_bits <= COMPACT_BITS_MAX and fragment < 1 << 32 and not whole and not full
    return LAYOUT_COMPRESSED_COMPACT if compact else LAYOUT_COMPRESSED_FULL


def full_index_size(size: int, block_bits: int) -> int:
    """Return the bytes of a full index with its map header: what compression must save at least, as in mkfs.erofs."""
    return 16 + FULL_INDEX.size * _lclusters(size, block_bits)


def build_index(
    extents: Sequence[Extent],
    size: int,
    site: Site,
    *,
    big: bool,
    inline: int = 0,
    full: bool = False,
) -> bytes:
    """Encode map header and index of a file of `size` bytes. If it is not a fragment, the last extent may be `inline`
    bytes after the index."""
    block_bits, first_block, position, fragment, algorithm = site
    advise = ADVISE_BIG_PCLUSTER_1 | ADVISE_BIG_PCLUSTER_2 if big else 0
    low = 0
    if fragment >= 0:
        if len(extents) == 1:  # the header alone says everything
            return (fragment | WHOLE_FRAGMENT).to_bytes(8, "little")
        advise |= ADVISE_FRAGMENT_PCLUSTER
        low = fragment & NULL_ADDR
    elif inline:
        advise |= ADVISE_INLINE_PCLUSTER
        low = inline << 16
    count = _lclusters(size, block_bits)
    if layout_for(block_bits, fragment, full=full) == LAYOUT_COMPRESSED_FULL:
        heads = _heads(extents, size, block_bits, first_block)
        if fragment >= 0:  # the terminator, if any, is not a HEAD1
            tail = -1 if heads[-1].kind == LCLUSTER_HEAD1 else -2
            heads[tail] = heads[tail]._replace(block=fragment >> 32)
        return MAP_HEADER.pack(low, advise, algorithm, 0) + _full(heads, count, big)
    if block_bits <= COMPACT_2B_BITS_MAX:
        advise |= ADVISE_COMPACTED_2B
    header = MAP_HEADER.pack(low, advise, algorithm, 0)
    if len(extents) == 1 and big and count <= ALONE_MAX and not extents[0].raw:
        return header + _alone(extents[0].blocks, size, block_bits, first_block, position + len(header))
    starts = _starts(extents, size, block_bits, first_block)
    return header + _compact(starts, count, max(block_bits, 12), advise, position + len(header))


def build_index_of_one(blocks: int, size: int, block_bits: int, block: int, head_size: int, algorithm: int) -> bytes:
    """Like `build_index`, for a file of a single pcluster, in the compact form for big pclusters, after an inode of
    `head_size` bytes; b"" if that is not possible."""
    if block_bits > COMPACT_BITS_MAX or _lclusters(size, block_bits) > ALONE_MAX:
        return b""
    return _header(algorithm, block_bits) + _alone(blocks, size, block_bits, block, (head_size + 7 & ~7) + 8)


@cache
def _header(algorithm: int, block_bits: int) -> bytes:
    advise = ADVISE_COMPACTED_2B if block_bits <= COMPACT_2B_BITS_MAX else 0
    return MAP_HEADER.pack(0, advise | ADVISE_BIG_PCLUSTER_1 | ADVISE_BIG_PCLUSTER_2, algorithm, 0)


def _lclusters(size: int, block_bits: int) -> int:
    return -(-size >> block_bits)


def _heads(extents: Sequence[Extent], size: int, block_bits: int, first_block: int) -> list[Head]:
    """Return the heads of all extents; raw ones have one in each block.

    If the last extent ends inside an lcluster other than the one in which it starts, that lcluster gets an empty head
    with block 0, to bound the real one.
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
    """Encode z_erofs_lcluster_index records after 8 unused bytes."""
    out = bytearray(8)
    for head, end in zip(heads, _ends(heads, count), strict=True):
        advise = head.kind | INDEX_PARTIAL_REF if head.partial else head.kind
        out += FULL_INDEX.pack(advise, head.offset, head.block)
        for back in range(1, end - head.lcluster):
            delta = D0_CBLKCNT | head.blocks if big and back == 1 else min(back, DELTA_MAX)
            out += FULL_INDEX.pack(LCLUSTER_NONHEAD, 0, delta | min(end - head.lcluster - back, DELTA_MAX) << 16)
    return bytes(out)


class Starts(NamedTuple):
    """Heads in the form that compact indexes need, in lists of equal length: there may be a hundred thousand.

    entries   offset and kind of each
    blocks    the first block of each; used only if pclusters have several
    counts    the number of blocks of each
    """

    lclusters: list[int]
    entries: list[int]
    blocks: list[int]
    counts: list[int]


def _starts(extents: Sequence[Extent], size: int, block_bits: int, first_block: int) -> Starts:
    """Like `_heads`, for contiguous extents."""
    mask, kind_at = (1 << block_bits) - 1, max(block_bits, 12)
    head, plain = LCLUSTER_HEAD1 << kind_at, LCLUSTER_PLAIN << kind_at
    starts = Starts([], [], [], [])
    lclusters, entries, firsts, counts = starts
    start, block = 0, first_block
    for length, blocks, raw, _, _ in extents:
        at = start >> block_bits
        if raw and blocks > 1:
            lclusters += range(at, at + blocks)
            entries += [start & mask | plain] * blocks
            firsts += range(block, block + blocks)
            counts += [1] * blocks
        else:
            lclusters.append(at)
            entries.append(start & mask | (plain if raw else head))
            firsts.append(block)
            counts.append(blocks)
        block += blocks
        start += length
    if size & mask and lclusters[-1] != size >> block_bits:
        lclusters.append(size >> block_bits)
        entries.append(size & mask | plain)
        firsts.append(0)
        counts.append(1)
    return starts


def _compact(starts: Starts, count: int, low_bits: int, advise: int, position: int) -> bytes:
    """Encode packs: 4-byte entries up to a 32-byte boundary, then 2-byte ones in sixteens, then 4-byte ones again."""
    big = bool(advise & ADVISE_BIG_PCLUSTER_1)
    entries = _compact_entries(starts, count, low_bits, big)
    leading = min((32 - position % 32) // 4 % 8, count)
    middle = (count - leading) // 16 * 16 if advise & ADVISE_COMPACTED_2B else 0
    rest = leading + middle
    parts = range(0, leading, 2), range(leading, rest, 16), range(rest, count, 2)  # lclusters at which packs start
    for part in parts:
        ends = range(part.start + part.step - 1, min(part.stop, count), part.step)
        _look_ahead(entries, ends, starts.lclusters, low_bits)
    before = array("I", (bisect_left(starts.lclusters, at) for at in chain(*parts)))  # number of heads before the pack
    if big:
        bases = array("I", map(_big_base, repeat(starts), before, chain(*parts)))
    else:
        base = starts.blocks[0] - 1
        bases = array("I", [base + number for number in before])
    first, last = -(-leading // 2), -(-leading // 2) + middle // 16
    out = bytearray(_pack_2(entries[:leading], bases[:first]))
    for at in range(first, last, PACKS_MAX):
        end = min(at + PACKS_MAX, last)
        out += _pack_16(entries[leading + (at - first) * 16 : leading + (end - first) * 16], bases[at:end])
    out += _pack_2(entries[rest:], bases[last:])
    return bytes(out)


def _alone(blocks: int, size: int, block_bits: int, first_block: int, position: int) -> bytes:
    """Like `_compact`, for a single extent, which most files have: a number that is linear in three others."""
    rest = size & (1 << block_bits) - 1
    fixed, by_first, by_blocks, by_rest, length = _linear(
        _lclusters(size, block_bits), rest > 0, block_bits, position % 32
    )
    return (fixed + by_first * first_block + by_blocks * blocks + by_rest * rest).to_bytes(length, "little")


@cache
def _linear(count: int, has_rest: bool, block_bits: int, position: int) -> tuple[int, int, int, int, int]:
    """For a single extent of `count` lclusters, return the index with first block, blocks and bytes in the last
    lcluster all 0, what to add for each of these, and the index's size in bytes. The three are in separate fields that
    never overflow."""
    advise = ADVISE_BIG_PCLUSTER_1 | (ADVISE_COMPACTED_2B if block_bits <= COMPACT_2B_BITS_MAX else 0)

    def made(first_block: int, blocks: int, rest: int) -> bytes:
        size = (count - has_rest << block_bits) + rest
        starts = _starts([Extent(size, blocks, False)], size, block_bits, first_block)
        return _compact(starts, count, max(block_bits, 12), advise, position)

    fixed, first, one, more = (
        int.from_bytes(made(*values), "little")
        for values in ((0, 0, has_rest), (1, 0, has_rest), (0, 1, has_rest), (0, 0, 2 * has_rest))
    )
    return fixed - (more - fixed), first - fixed, one - fixed, more - fixed, len(made(0, 0, has_rest))


def _pack_2(entries: array[int], bases: array[int]) -> bytes:
    """Encode packs of two 16-bit entries and the base. A missing last entry is empty."""
    if len(entries) % 2:
        entries.append(0)
    packs = array("I", bytes(8 * len(bases)))
    packs[::2] = array("I", entries.tobytes())
    packs[1::2] = bases
    return _little(packs)


def _pack_16(entries: array[int], bases: array[int]) -> bytes:
    """Encode packs of sixteen 14-bit entries and the base: neighbours are joined step by step into one number of 224
    bits, for all packs at once."""
    bits = int.from_bytes(_little(entries), "little")
    for gap, lower, upper in _lanes((len(bases) - 1).bit_length()):
        bits = bits & lower | (bits & upper) >> gap
    packs = array("I", bits.to_bytes(32 * len(bases), "little"))
    if sys.byteorder == "big":
        packs.byteswap()
    packs[7::8] = bases
    return _little(packs)


@cache
def _lanes(log: int) -> list[tuple[int, int, int]]:
    """For 2 ** log packs, return for each step how far the upper neighbour moves, and the masks of lower and upper."""
    steps = []
    for width in (16, 32, 64, 128):
        used = width * 14 // 16
        lower = ((1 << used) - 1).to_bytes(width // 4, "little") * (128 // width << log)
        steps.append((width - used, mask := int.from_bytes(lower, "little"), mask << width))
    return steps


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _compact_entries(starts: Starts, count: int, low_bits: int, big: bool) -> array[int]:
    """Return the entry of each lcluster, assuming that it is not in the last slot of a pack."""
    entries = array("H")
    append, back = entries.append, _distances(low_bits)
    counted = LCLUSTER_NONHEAD << low_bits | D0_CBLKCNT
    lclusters = starts.lclusters
    if len(lclusters) == count:  # all are heads
        return array("H", starts.entries)
    for at, end, entry, blocks in zip(lclusters, [*lclusters[1:], count], starts.entries, starts.counts, strict=True):
        append(entry)
        run = end - at - 1
        if run:
            if big:
                append(counted | blocks)
                entries += back[1:run]
            else:
                entries += back[:run]
    assert len(entries) == count, "one entry for each lcluster, extents shorter than distances can tell"  # noqa: S101
    return entries


def _look_ahead(entries: array[int], slots: Sequence[int], lclusters: Sequence[int], low_bits: int) -> None:
    """Let a NONHEAD in the last slot of a pack state the distance ahead instead of back, unless it states a count."""
    nonhead = LCLUSTER_NONHEAD << low_bits
    for slot in slots:
        entry = entries[slot]
        if entry & nonhead and not entry & D0_CBLKCNT:
            following = bisect_left(lclusters, slot)
            end = lclusters[following] if following < len(lclusters) else len(entries)
            entries[slot] = nonhead | end - slot


@cache
def _distances(low_bits: int) -> array[int]:
    """NONHEAD entries with distances from 1 on."""
    nonhead = LCLUSTER_NONHEAD << low_bits
    return array("H", range(nonhead + 1, nonhead + DELTA_MAX + 1))


def _big_base(starts: Starts, before: int, at: int) -> int:
    """Return the base block of a pack that starts at lcluster `at`, with `before` heads before it.

    A head is at the base plus the blocks of those earlier pclusters whose count appears in the pack. A head in the last
    slot before the pack has its count in the pack's first entry, unless that is a head itself.
    """
    lclusters = starts.lclusters
    if not before:
        return starts.blocks[0]
    last = before - 1
    block = starts.blocks[last]
    counted_here = lclusters[last] + 1 == at and (before == len(lclusters) or lclusters[before] != at)
    return block if counted_here else block + starts.counts[last]


def _ends(heads: Sequence[Head], count: int) -> list[int]:
    """Return the lcluster of the next head for each head."""
    return [*(head.lcluster for head in heads[1:]), count]
