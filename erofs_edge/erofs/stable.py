# SPDX-License-Identifier: Apache-2.0
"""The layout of an image that replaces an older one: what has not changed keeps its place.

Unchanged data keeps its blocks; an inode keeps its number, and its place if everything still fits there; a directory
keeps its blocks if they suffice. New content fills the holes by best fit, largest first; what does not fit is appended
in order. That can leave holes, so there is a limit: if the image would be larger than GROWTH allows, the part at its
end is placed anew, as if it were new, in steps from 1/64 of the image to all of it. In the last case, the layout is
that of an image without a baseline.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from erofs_edge.erofs.baseline import Baseline
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.head import Head
from erofs_edge.erofs.layout import Packing, directory_blocks, footprint, place, slots_of
from erofs_edge.erofs.ondisk import (
    INCOMPAT_COMPR_CFGS,
    INCOMPAT_LZ4_0PADDING,
    SLOT_BITS,
    SLOT_SIZE,
    SUPER_OFFSET,
    SUPER_SIZE,
)
from erofs_edge.erofs.plan import PACKED_PATH, Node, Plan
from erofs_edge.erofs.space import Space
from erofs_edge.erofs.spool import Run, Spool
from erofs_edge.errors import UsageError

GROWTH = 40  # an image is at most 1/40 larger than one packed without gaps
GROWTH_MIN = 4  # blocks by which it may be larger in any case
METADATA_GROWTH = 64  # best fit of inodes needs at most 1/64 more than the sum of their sizes
CUTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # 64ths of the image, from its end, to place anew


@dataclass(frozen=True, slots=True)
class Stable:
    """blocks: of the image; free: blocks that belong to nothing; data: blocks of files; kept: data blocks that did not
    move; anew: the block from which everything was placed anew, None if nothing was."""

    blocks: int
    free: int
    data: int
    kept: int
    anew: int | None


def check_options(baseline: Baseline, codings: Codings, block_size: int) -> None:
    """Raises UsageError if the baseline was compressed differently, as far as it shows."""
    bits = INCOMPAT_LZ4_0PADDING | INCOMPAT_COMPR_CFGS
    incompat, u1 = codings.features()
    records = codings.records(block_size)
    same = baseline.raw.feature_incompat & bits == incompat & bits and (not incompat or baseline.raw.u1 == u1)
    if not same or baseline.read(SUPER_OFFSET + SUPER_SIZE, len(records)) != records:
        raise UsageError(
            "the baseline was built with another compression, size of clusters or of dictionaries",
            where=str(baseline.path),
            hint="build with the options that the baseline was built with, or without a baseline",
        )


def claim(head: Head, baseline: Baseline) -> Space:
    """Return the blocks that data cannot use: the first ones, and those with inodes."""
    space = Space()
    space.take(0, head.blocks)
    for block in baseline.inode_blocks():
        space.take(block, 1)
    return space


def keep_numbers(plan: Plan, baseline: Baseline) -> None:
    """Give each node the i_ino of its path in the baseline; new ones get the lowest free numbers."""
    packed = baseline.inodes.get(PACKED_PATH)
    used: set[int] = {packed.number} if packed is not None else set()
    new = []
    for node in plan.nodes:
        old = baseline.inodes.get(node.path)
        if old is None or not old.number or old.number in used:
            new.append(node)
            continue
        node.ino = old.number
        used.add(old.number)
    left = (number for number in count(1) if number not in used)
    for node, number in zip(new, left, strict=False):
        node.ino = number


def number_for(path: bytes, plan: Plan, baseline: Baseline) -> int:
    """Return the i_ino for a node that is added late: that of the baseline, or the lowest free number."""
    old = baseline.inodes.get(path)
    if old is not None:
        return old.number
    used = {node.ino for node in plan.nodes}
    return next(number for number in count(1) if number not in used)


def arrange(
    plan: Plan, head: Head, files: FileStore, spool: Spool, baseline: Baseline, block_size: int, *, compact: bool
) -> Stable:
    """Place everything; nothing is written yet. With `compact`, no free block is left."""
    arrangement = _Arrangement(plan, head, files, spool.runs, baseline, block_size)
    for part in CUTS:
        made = arrangement.make(baseline.blocks * (64 - part) // 64 if part else None)
        if arrangement.is_small_enough(made, compact=compact):
            break
    return made


class _Arrangement:
    """Successive attempts to place everything."""

    def __init__(
        self, plan: Plan, head: Head, files: FileStore, runs: Sequence[Run], baseline: Baseline, block_size: int
    ) -> None:
        self._nodes = plan.nodes
        self._head = head
        self._files = files
        self._runs = [run for run in runs if run.size]
        self._moving: dict[Node, int] = {}  # directories that get new blocks → how many
        self._baseline = baseline
        self._block_size = block_size
        self._data = sum(run.blocks(block_size) for run in self._runs)
        self._space = Space()

    def make(self, cut: int | None) -> Stable:
        """Place everything, ignoring what the baseline has from block `cut` on."""
        space = self._space = Space()
        space.take(0, self._head.blocks)
        limit = self._baseline.blocks if cut is None else cut
        inode_blocks = {block for block in self._baseline.inode_blocks() if block < limit and space.take(block, 1)}
        kept = self._place_runs(limit)
        self._files.settle(self._where)
        self._place_inodes(inode_blocks, limit)
        return Stable(space.end, space.free, self._data, kept, cut)

    def is_small_enough(self, made: Stable, *, compact: bool) -> bool:
        slots = sum(slots_of(node) for node in self._nodes)
        metadata = -(-slots * SLOT_SIZE // self._block_size)
        metadata += metadata // METADATA_GROWTH + 1
        directories = sum(len(node.names) - bool(node.tail_size) for node in self._nodes if node.inode.is_dir)
        needed = self._head.blocks + self._data - self._files.excess + metadata + directories
        if compact:
            return not made.free and made.blocks <= needed + self._files.excess
        return made.blocks <= needed + max(needed // GROWTH, GROWTH_MIN)

    def _where(self, block: int) -> int:
        """Return the image's block for a block of the spool."""
        run = self._runs[bisect_right(self._runs, block, key=lambda run: run.start) - 1]
        return run.place + block - run.start

    def _place_runs(self, limit: int) -> int:
        """Place unchanged data, then data that begins like what is there, then the rest. Return how many blocks
        stay."""
        space, size = self._space, self._block_size
        self._moving = self._keep_directories(limit)
        rest, kept = [], 0
        for run in self._runs:
            if run.kept and run.old + run.blocks(size) <= limit and space.take(run.old, run.blocks(size)):
                run.place = run.old
                kept += run.blocks(size)
            else:
                rest.append(run)
        new = []
        for run in rest:
            if run.same and run.old + run.blocks(size) <= limit and space.take(run.old, run.blocks(size)):
                run.place = run.old
            else:
                new.append(run)
        behind = set()
        for run in sorted(new, key=lambda run: -run.size):
            first = space.fill(run.blocks(size))
            if first is None:
                behind.add(run)
            else:
                run.place = first
        for run in sorted(new, key=lambda run: run.rank):
            if run in behind:
                run.place = space.append(run.blocks(size))
        return kept

    def _keep_directories(self, limit: int) -> dict[Node, int]:
        """Let directories keep their old blocks if these suffice. Return the others and how many blocks they need."""
        root = self._nodes[0]
        needs = directory_blocks(self._nodes[1:], self._block_size)
        if self._head.root_blocks:
            needs = {root: self._head.root_blocks} | needs
        moving = {}
        for node, blocks in needs.items():
            old = self._baseline.inodes.get(node.path)
            suffice = old is not None and old.blocks >= blocks and old.block + blocks <= limit
            if old is not None and suffice and self._space.take(old.block, blocks):
                node.i_u = old.block
            else:
                moving[node] = blocks
        return moving

    def _place_inodes(self, inode_blocks: set[int], limit: int) -> None:
        root, *others = self._nodes
        if root in self._moving:
            root.i_u = self._space.allocate(self._moving.pop(root))
        slots = _Slots(self._block_size, inode_blocks, self._head)
        for node in others:
            node.nid = -1
        old = self._baseline.inodes
        end = limit * self._block_size >> SLOT_BITS
        known = [(node, old[node.path]) for node in others if node.path in old and old[node.path].nid < end]
        for node, inode in known:
            if slots_of(node) <= inode.slots and slots.fits(node, inode.nid):
                slots.take(node, inode.nid)
        for node, inode in known:
            if node.nid < 0 and slots.fits(node, inode.nid):
                slots.take(node, inode.nid)
        gone = set(old.values()) - {inode for node, inode in known if node.nid >= 0}
        changed = {inode.nid * SLOT_SIZE // self._block_size for inode in gone}
        holes = list(slots.holes())
        packing = Packing(
            [node for node in others if node.nid < 0],
            self._block_size,
            holes=[hole for hole in holes if hole[0] // self._block_size in changed],
            spare=[hole for hole in holes if hole[0] // self._block_size not in changed],
        )
        place(packing, self._moving, self._space.allocate)
        filled = {block for node in others for block in _blocks_of(node, self._block_size)}
        for block in inode_blocks - filled:
            self._space.release(block, 1)


class _Slots:
    """Which slots are used in the blocks that contain inodes."""

    def __init__(self, block_size: int, blocks: set[int], head: Head) -> None:
        self._block_size = block_size
        self._per_block = block_size // SLOT_SIZE
        self._used = dict.fromkeys(sorted(blocks), 0)
        start, end = head.hole
        if start < end:
            block = start // block_size
            self._used[block] = (1 << (start - block * block_size) // SLOT_SIZE) - 1

    def fits(self, node: Node, nid: int) -> bool:
        """Whether a node fits there: its slots are free, and its inline tail crosses no block boundary."""
        slots = slots_of(node)
        start = nid << SLOT_BITS
        end = start + footprint(node)
        if node.tail_size:
            tail = end - node.tail_size
            if tail // self._block_size != (end - 1) // self._block_size or not tail % self._block_size:
                return False
        elif slots <= self._per_block and start // self._block_size != (end - 1) // self._block_size:
            return False
        return all(not self._used.get(block, -1) & mask for block, mask in self._masks(nid, slots))

    def take(self, node: Node, nid: int) -> None:
        for block, mask in self._masks(nid, slots_of(node)):
            self._used[block] |= mask
        node.nid = nid

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) in bytes of every run of free slots within a block."""
        for block, used in self._used.items():
            at = 0
            while at < self._per_block:
                if used >> at & 1:
                    at += 1
                    continue
                rest = used >> at
                free = (rest & -rest).bit_length() - 1 if rest else self._per_block - at
                start = block * self._block_size + at * SLOT_SIZE
                yield start, start + free * SLOT_SIZE
                at += free

    def _masks(self, nid: int, slots: int) -> Iterator[tuple[int, int]]:
        """Yield (block, bits of slots) for a range of slots."""
        while slots:
            block, at = divmod(nid, self._per_block)
            part = min(slots, self._per_block - at)
            yield block, ((1 << part) - 1) << at
            nid, slots = nid + part, slots - part


def _blocks_of(node: Node, block_size: int) -> range:
    start = node.nid << SLOT_BITS
    return range(start // block_size, (start + footprint(node) - 1) // block_size + 1)
