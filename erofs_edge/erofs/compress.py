# SPDX-License-Identifier: Apache-2.0
"""How content is cut into pclusters: the rules that determine the bytes of a compressed file.

They are those of mkfs.erofs (erofs-utils 1.9, several workers): segments of 16 MiB, pclusters filled to their fixed
output size, incompressible runs stored raw block by block, and a whole file stored flat if compression gains nothing.
Changing any of them changes images: then raise cut_rules.RULES, which is part of the key of cached data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from erofs_edge.codec.lz4 import FixedOutput, address_of
from erofs_edge.codec.registry import open_compressor
from erofs_edge.codec.search import SearchedOutput
from erofs_edge.erofs.cut_rules import CutRules, Tails
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.levels import DEVICE_TREE_LEVEL, first_try, found_nothing, packed_level, saves_no_block
from erofs_edge.erofs.meter import Meter
from erofs_edge.erofs.noise import Filler, Noise, glances_for
from erofs_edge.erofs.segments import Segment, store_raw

if TYPE_CHECKING:
    from erofs_edge.erofs.anchors import Anchors

CAP_LEAST = 32 << 10  # minimum bytes of input for an LZ4HC call, if available: fewer calls have to be repeated
CAP_SLACK = 64  # a call that stops this close to the end of its input may have been limited by it

ARCHIVE_MAGIC = b"PK\x03\x04"  # its members may be uncompressed
# first bytes of formats that are already compressed; only a hint, `is_incompressible` looks closer
COMPRESSED_MAGIC = (
    b"\xfd7zXZ\0",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x89PNG\r\n",
    ARCHIVE_MAGIC,
    b"BZh",
    b"7z\xbc\xaf\x27\x1c",
    b"LZIP",
    b"\xff\xd8\xff",
    b"OggS",
    b"wOF2",
)
FAST_RATIO_MAX = 4  # limit in pclusters of input for trying the fast codec
PROBE, PROBE_MAX = 4096, 65536  # bytes; the latter for archives
PROBE_KEPT = 0.99  # of the probe's bytes; a smaller result means that compression pays


class Cutter:
    """Cuts segments with the compressors of one thread."""

    def __init__(self, rules: CutRules, meter: Meter | None = None) -> None:
        self.rules = rules
        self.identity = rules.identity
        self._meter = meter
        self._compressor = open_compressor(rules.codec, rules.level, rules.pcluster, rules.block_size, rules.dictionary)
        self._probe = FixedOutput(None, PROBE_MAX)
        self._fast = FixedOutput(None, rules.pcluster)
        self._run: Callable[..., tuple[int, int]] = self._compressor.fill
        self._run_fast = self._fast.fill
        if meter is not None:
            self._run, self._run_fast = meter.watch(self._run), meter.watch(self._run_fast)
        self._extent_max = rules.extent_max
        self._cap_least = max(CAP_LEAST, 4 * rules.pcluster)
        self._cap_barren = rules.pcluster + max(2 * CAP_SLACK, rules.pcluster >> 6)
        self._glances = glances_for(rules.codec.name, rules.pcluster, rules.block_size, meter)
        self._noise = Noise(rules.codec.name, rules.level, rules.pcluster)
        self._patience = self._noise.patience or 1 << 62
        may_try = rules.codec.name == "lz4hc" and not rules.exact
        self._first_level, self._first_gain = first_try((rules.level or 0) if may_try else 0)
        self._first_most = 5 * rules.pcluster // 2 if self._first_level else 0
        self._kinds: dict[int | None, Cutter] = {rules.level: self}
        self._fillers: dict[Tails, Filler] = {}
        self.zeros: dict[Tails, Segment] = {}  # the result for a piece of zeros, once requested

    def for_start(self, start: bytes) -> Cutter:
        """Return the cutter for a file with these first bytes: with another level, if the rules leave it open."""
        level = self.rules.codec.level_for(start) if self.rules.by_kind else self.rules.level
        if level not in self._kinds:
            self._kinds[level] = Cutter(self.rules._replace(level=level), self._meter)
        return self._kinds[level]

    def restart(self) -> None:
        """Allow the memory of earlier segments' chunks, which are no longer needed, to be reused."""
        for cutter in self._kinds.values():
            if isinstance(cutter._compressor, FixedOutput):
                cutter._compressor.restart()

    def cut(self, data: bytes, tails: Tails = Tails.BLOCK) -> Segment:
        """Cut one segment (at most 16 MiB); `tails` if it is the last one of its file."""
        segment = self._cut(data, tails, -1)
        assert segment is not None  # noqa: S101 - can fail only if another extent follows
        return segment

    def cut_before(self, data: bytes, phase: int) -> Segment | None:
        """Cut bytes that are followed by another extent; the first extent starts at `phase` in its lcluster.

        No two extents may start in the same lcluster: None if the end cannot be cut accordingly.
        """
        return self._cut(data, Tails.BLOCK, phase)

    def recut(self, data: bytes, tails: Tails, old: Anchors) -> Segment:
        """Like `cut`, for content that an older image partly contains: cut where that image is cut, as far as possible.

        From the start of an old extent, the content alone determines where the next pcluster ends, so the result is the
        same. An extent that would reach beyond a known point ends there. If everything is unchanged, the extents are
        the old ones.
        """
        block_size, pcluster = self.rules.block_size, self.rules.pcluster
        view = memoryview(data)
        base, size = address_of(data), len(data)
        segment = Segment([], [])
        at = consumed = 0
        aimed = False  # whether an extent had to end at `at`; what was not inline never starts inline there
        while at < size:
            left, target = size - at, old.target(at, 2 * block_size)
            if at == old.inline and tails is Tails.INLINE and self._store_inline(segment, view[at:], base + at):
                break
            if left <= block_size:
                inline = tails is Tails.INLINE and not aimed and left < block_size
                if not inline or not self._store_inline(segment, view[at:], base + at):
                    store_raw(segment, view[at:], block_size)
                break
            if old.is_raw(at) and (target == size or _may_end_raw(at, target, block_size)):
                store_raw(segment, view[at:target], block_size)
                at, aimed = target, True
                continue
            known = old.known_end(at) is not None
            split = known and target == old.inline  # possibly
            call = partial(self._fill_to, base + at, left, consumed, target - at, tails, known=known, split=split)
            consumed, produced = call()
            if consumed == left and tails is Tails.INLINE and not (aimed and produced < block_size):
                if self._split_tail(segment, view[at:], base + at, produced):
                    break
                call()  # repeat the same call: its buffer was used for others
            blocks = -(-produced // block_size)
            if blocks * block_size < consumed:
                segment.extents.append(Extent(consumed, blocks, False))
                segment.chunks.append(self._compressor.padded(produced, blocks * block_size))
                at += consumed
            else:
                run = max(1, min(consumed, pcluster) // block_size) * block_size
                if at + run > target and _may_end_raw(at, target, block_size):
                    run = target - at
                store_raw(segment, view[at : at + run], block_size)
                at += run
            aimed = at == target
        return segment

    def _fill_to(
        self, address: int, left: int, last: int, wanted: int, tails: Tails, *, known: bool, split: bool
    ) -> tuple[int, int]:
        """Like `_filler`, but for at most `wanted` bytes if these gain, too. `known`: the call consumed that many when
        the older image was made; `split`: they may be the whole blocks of a split tail."""
        # the result of a search depends on its first guess; this one gives the same result again
        guess = {"guess": wanted} if isinstance(self._compressor, SearchedOutput) else {}
        if known and guess:
            done = self._run(address, wanted, **guess)
            if done[0] == wanted:
                return done
        fill = self._filler(tails)
        done = fill(address, left, last)
        if done[0] <= wanted or (split and done[0] == left) or not self._gains(done):
            return done
        shorter = self._run(address, wanted, **guess) if guess else fill(address, wanted, last)
        if shorter[0] == wanted and self._gains(shorter):
            return shorter
        return fill(address, left, last)  # repeated because its buffer was used

    def _gains(self, filled: tuple[int, int]) -> bool:
        block_size = self.rules.block_size
        return -(-filled[1] // block_size) * block_size < filled[0]

    def _cut(self, data: bytes, tails: Tails, phase: int) -> Segment | None:
        block_size = self.rules.block_size
        fill = self._fillers.get(tails) or self._fillers.setdefault(tails, self._filler(tails))
        padded = self._compressor.padded
        view = memoryview(data)
        base, size = address_of(data), len(data)
        extents: list[Extent] = []
        chunks: list[bytes | memoryview] = []
        segment = Segment(extents, chunks)
        look = self._glances.before(fill, blocks=tails is Tails.BLOCK) if self._glances and phase < 0 else fill
        at = consumed = barren = noisy = 0
        while at < size:
            left = size - at
            if tails is not Tails.BLOCK and self._keep_tail(segment, view[at:], base + at, tails):
                break
            if left <= block_size:
                store_raw(segment, view[at:], block_size)
                break
            before = consumed
            consumed, produced = (look if noisy or not at else fill)(base + at, left, before)
            if consumed == left and tails is not Tails.BLOCK:
                if self._keep_last(segment, view[at:], base + at, produced, tails):
                    break
                if tails is Tails.INLINE:
                    # repeat the same call: its buffer was used for others
                    fill(base + at, left, before)
            if phase >= 0 and self._is_crowded(phase, at + consumed, size):
                # the rest would start in the lcluster in which it ends and the next extent starts
                consumed, produced = self._run(base + at, left - block_size)
            blocks = -(-produced // block_size)
            if blocks * block_size < consumed:
                extents.append(Extent(consumed, blocks, False))
                chunks.append(padded(produced, blocks * block_size))
                at += consumed
                barren = 0
            else:
                noisy = noisy or found_nothing(consumed, produced)
                run = max(1, min(consumed, self.rules.pcluster) // block_size) * block_size
                run -= block_size * self._is_crowded(phase, at + run, size)
                if not run:
                    return None
                store_raw(segment, view[at : at + run], block_size)
                at += run
                barren += run
                if barren >= self._patience and phase < 0:
                    for _ in range(self._noise.runs(base + at, size - at, run)):
                        store_raw(segment, view[at : at + run], block_size)
                        at += run
                    barren = 0
        return segment

    def _keep_tail(self, segment: Segment, data: memoryview, address: int, tails: Tails) -> bool:
        """Store the rest of a file as its fragment or inline tail if that can be decided before compressing it.

        Return whether it was stored.
        """
        left = len(data)
        if tails is Tails.FRAGMENT and self._leaves_room(address, left):
            segment.extents.append(Extent(left, 0, False))
            return True
        return tails is Tails.INLINE and left < self.rules.block_size and self._store_inline(segment, data, address)

    def _keep_last(self, segment: Segment, data: memoryview, address: int, produced: int, tails: Tails) -> bool:
        """The same if the rest turned out to fit into one pcluster, in `produced` bytes."""
        if tails is Tails.FRAGMENT and produced < self.rules.pcluster:
            segment.extents.append(Extent(len(data), 0, False))
            return True
        return tails is Tails.INLINE and self._split_tail(segment, data, address, produced)

    def _is_crowded(self, phase: int, at: int, size: int) -> bool:
        """Whether an extent from byte `at` to `size`, followed by another, would begin and end in the same lcluster."""
        return phase >= 0 and at < size and (phase + at) % self.rules.block_size + size - at < self.rules.block_size

    def _leaves_room(self, address: int, left: int) -> bool:
        """Whether the end of a file is known not to fill a pcluster. Usually the fast codec can tell cheaply."""
        pcluster = self.rules.pcluster
        if left <= pcluster:
            return True
        if self.rules.level is None or left > FAST_RATIO_MAX * pcluster:
            return False
        return self._run_fast(address, left, pcluster - 1)[0] == left

    def _store_inline(self, segment: Segment, data: memoryview, address: int) -> bool:
        """Store the end of a file after its index, compressed or raw, if it is short enough."""
        limit = self.rules.inline_max
        consumed, produced = self._run(address, len(data))
        if consumed == len(data) and produced < min(len(data), limit + 1):
            segment.extents.append(Extent(len(data), 0, False))
            segment.chunks.append(self._compressor.padded(produced, produced))
            return True
        if len(data) <= min(limit, self.rules.block_size):
            segment.extents.append(Extent(len(data), 0, True))
            segment.chunks.append(data)
            return True
        return False

    def _split_tail(self, segment: Segment, data: memoryview, address: int, produced: int) -> bool:
        """Store the last pcluster in whole blocks and the rest inline; otherwise it would take one block more.

        `produced` bytes are what the compressor has just produced for all of `data`. If the result is False, the
        compressor has been used for other calls.
        """
        block_size = self.rules.block_size
        whole = produced // block_size * block_size
        if not whole:
            return self._store_inline(segment, data, address)
        consumed, produced = self._run(address, len(data), whole)
        if consumed == len(data) or consumed <= whole or produced <= whole - block_size:
            return False
        chunk = self._compressor.padded(produced, whole)
        segment.extents.append(Extent(consumed, whole // block_size, False))
        segment.chunks.append(chunk)
        if self._store_inline(segment, data[consumed:], address + consumed):
            return True
        segment.extents.pop()
        segment.chunks.pop()
        return False

    def _filler(self, tails: Tails) -> Filler:
        """Return the function that makes one pcluster."""
        if self.rules.packed and self._first_most and (self.rules.level or 0) > DEVICE_TREE_LEVEL:
            return self._fill_packed
        if self._first_most and tails is Tails.BLOCK:
            return self._fill_whole_blocks
        run, most = self._run, self._extent_max
        if isinstance(self._compressor, SearchedOutput):
            return lambda address, left, last: run(address, min(left, most), guess=last)
        if self.rules.codec.name == "lz4hc":
            return self._fill_capped
        return lambda address, left, last: run(address, min(left, most))

    def _fill_whole_blocks(self, address: int, left: int, last: int) -> tuple[int, int]:
        """Like `_fill_capped`, but try a faster level first if the rest may fit into one pcluster. Only blocks count,
        and in most cases the slower level would save none: it takes several times as long to save a few bytes."""
        if left <= self._first_most:
            consumed, produced = self._fill_capped(address, left, last, self._first_level)
            if consumed == left and saves_no_block(min(produced, left), self._first_gain, self.rules.block_size):
                return consumed, produced
            if consumed < left and found_nothing(consumed, produced):
                return consumed, produced
            last = consumed
        return self._fill_capped(address, left, last)

    def _fill_packed(self, address: int, left: int, last: int) -> tuple[int, int]:
        """Like `_fill_capped`, for the packed inode, in which device trees are adjacent."""
        return self._fill_capped(address, left, last, packed_level(address, left))

    def _fill_capped(self, address: int, left: int, last: int, level: int | None = None) -> tuple[int, int]:
        """LZ4HC checks its output limit only when it has found a match, so with few matches every call scans far ahead
        in vain. An input that is not much longer than what the call will consume avoids that; if it turns out too
        short, the call is repeated with more."""
        limit = min(left, self._extent_max)
        cap = min(limit, max(self._cap_least, 2 * last))
        pcluster, barren = self.rules.pcluster, self._cap_barren
        some = min(cap, 5 * pcluster // 4)
        if 0 < last <= pcluster and barren < cap and self._run_fast(address, some)[0] <= pcluster:
            cap = barren  # no gain before, and apparently none here
        done = self._run(address, cap, level=level)
        while cap < limit and done[0] > cap - CAP_SLACK:
            cap = min(limit, 4 * cap)
            done = self._run(address, cap, level=level)
        return done

    def is_incompressible(self, middle: bytes) -> bool:
        """Whether a file starting with one of COMPRESSED_MAGIC, with this probe in its middle, is not worth
        compressing."""
        capacity = int(len(middle) * PROBE_KEPT) if len(middle) < PROBE_MAX else None
        consumed, produced = self._probe.fill(address_of(middle), len(middle), capacity)
        return consumed < len(middle) or produced >= PROBE_KEPT * len(middle)

    def probe_range(self, size: int, start: bytes) -> tuple[int, int]:
        """Return (offset, length) of the probe in the middle of a file with these first bytes."""
        length = min(size, self.rules.pcluster, PROBE_MAX if start.startswith(ARCHIVE_MAGIC) else PROBE)
        return (size - length) // 2, length


def _may_end_raw(start: int, end: int, block_size: int) -> bool:
    """Whether raw blocks for [start, end) leave the lcluster of `end` to the next extent."""
    rest = (end - start) % block_size
    return not rest or end % block_size < rest
