# SPDX-License-Identifier: Apache-2.0
"""Repair an image in place from its parity: what the kernel does on each read, done once and for all.

The tree says which blocks are wrong, so their symbols are erasures; parity corrects twice as many erasures as errors at
unknown positions. The tree also has the last word: a block is written only if its hash then matches. A repaired hash
block yields the verdict on the blocks below it. What cannot be repaired is not touched.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from erofs_edge.errors import UsageError
from erofs_edge.verity.blocks import Progress, counter, hash_blocks, read_exactly
from erofs_edge.verity.check import BAD, GOOD, SUSPECT, UNPROVEN, Mended, Ranges, Walk
from erofs_edge.verity.fec import COLUMNS, Covered, Layout, Places, opened, wrong_parity
from erofs_edge.verity.superblock import Superblock
from erofs_edge.writing import write_exactly

if TYPE_CHECKING:
    from erofs_edge.verity.rs import Bytes

FOREIGN = 4  # covered by the parity but not by the tree
UNKNOWN = 5  # nothing is left to prove the block right or wrong
NEIGHBOURS = 64  # adjacent words, which are likely to be damaged alike


@dataclass(frozen=True, slots=True)
class Repair(Mended):
    """`corrected` counts bytes; `parity` counts rewritten bytes of parity, which only happens for a whole image."""

    superblock: Superblock
    hash_offset: int
    layout: Layout
    corrected: int
    parity: int = 0


def repair(
    places: Places,
    root_hash: bytes,
    *,
    dry_run: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Correct every block of an image and its tree that can be corrected. A dry run keeps the corrections in memory.

    If that makes the image whole, wrong parity is recomputed. An interrupted repair leaves each block either as it was
    or correct. Memory use is one code round (255 blocks, or COLUMNS words of them) and one byte per block. Raises as
    `fec.opened` does, and UsageError if the length of the root hash does not fit the algorithm.
    """
    with opened(places, writable=not dry_run) as (sb, at, covered, fec_fd):
        if len(root_hash) != sb.digest_size:
            raise UsageError(f"the root hash has {len(root_hash)} bytes, but {sb.algorithm} has {sb.digest_size}")
        work = _Repair(sb, at, root_hash, covered, fec_fd, dry_run=dry_run)
        work.judge(Walk(sb, covered.data_fd, covered.hash_fd, jobs, counter(progress, sb.data_size)))
        work.run()
        found = work.report()
        if dry_run:
            return found
        if found.ok and FOREIGN not in work.status:
            found = replace(found, parity=wrong_parity(covered, fec_fd, mend=True, jobs=jobs))
        for fd in (covered.data_fd, covered.hash_fd, fec_fd):
            os.fsync(fd)
    return found


class _Repair:
    """The verdict on each covered block, and the queue of rounds to correct."""

    def __init__(
        self, sb: Superblock, at: int, root: bytes, covered: Covered, fec_fd: int, *, dry_run: bool
    ) -> None:  # fmt: skip
        self.sb, self.at, self.root, self.covered, self.fec_fd = sb, at, root, covered, fec_fd
        self.layout = covered.layout
        self.levels = sb.levels(at)
        self.status = bytearray(self.layout.blocks)
        tree_end = self.layout.data_blocks + sb.end(at) // sb.hash_block_size - self.layout.hash_start
        self.status[tree_end:] = bytes([FOREIGN]) * (self.layout.blocks - tree_end)
        self.waiting: deque[int] = deque()
        self.queued: set[int] = set()
        self.fixed: list[int] = []
        self.corrected = 0
        self.unwritten: dict[int, bytes] | None = {} if dry_run else None

    def judge(self, walk: Walk) -> None:
        """Record the findings of a verification."""
        for level, number, verdict in walk.findings(self.levels, self.root):
            block = self._block(-1 if level is None else self.levels.index(level), number)
            self._set(block, verdict)
        self._weigh()

    def run(self) -> None:
        """Correct round by round until no verdict changes."""
        while self.waiting:
            number = self.waiting.popleft()
            self.queued.remove(number)
            if any(self.status[block] == BAD for block in self._members(number)):
                self._mend(number)

    def report(self) -> Repair:
        layout, status = self.layout, self.status
        shift = layout.hash_start - layout.data_blocks

        def ranges(blocks: Iterator[int], shift: int = 0) -> Ranges:
            found = Ranges()
            for block in blocks:
                found.add(block + shift)
            return found

        split, fixed = layout.data_blocks, sorted(self.fixed)
        return Repair(
            superblock=self.sb,
            hash_offset=self.at,
            layout=layout,
            repaired_data=ranges(b for b in fixed if b < split),
            repaired_hash=ranges((b for b in fixed if b >= split), shift),
            lost_data=ranges(_find(status, bytes([BAD]), 0, split)),
            lost_hash=ranges(_find(status, bytes([BAD]), split, len(status)), shift),
            unproven=ranges(_find(status, bytes([UNPROVEN, SUSPECT, UNKNOWN]), 0, split)),
            corrected=self.corrected,
        )

    def _weigh(self) -> None:
        """Decide which blocks to suspect below a wrong hash block: the hash block itself, if it fits nothing below.

        No block fits a wrong digest by chance, so one that fits is right, even though nothing proves it yet.
        """
        destroyed, unknown = [], []
        for level, extent in enumerate(self.levels):
            for number in range(extent.count):
                block = self._block(level, number)
                below = self._below(level, number)
                if self.status[block] != GOOD and UNPROVEN not in self.status[below.start : below.stop]:
                    destroyed.append(block)
                    unknown.append(below)
        for below in unknown:
            self.status[below.start : below.stop] = bytes([UNKNOWN]) * len(below)
        for block in destroyed:
            if self.status[block] != BAD:
                self.status[block] = SUSPECT

    def _mend(self, number: int) -> None:
        """Correct what can be corrected in one round. Each block that is fixed helps with the others."""
        from erofs_edge.verity import rs

        members = self._members(number)
        found = self._syndromes(number)
        progress = True
        while progress:
            progress = False
            for corrections in self._attempts(found, [self.status[block] for block in members]):
                for symbol, correction in corrections.items():
                    block = number + symbol * self.layout.rounds
                    if symbol < len(members) and self.status[block] == BAD and self._accept(block, correction):
                        found = rs.shifted(found, symbol, correction)
                        progress = True
                if progress:
                    break

    def _attempts(self, found: Bytes, verdicts: list[int]) -> Iterator[dict[int, Bytes]]:
        """Yield guesses at what is wrong with the words of a round, likely ones first: symbol → what to add to it."""
        import numpy as np

        from erofs_edge.verity import rs

        columns = np.flatnonzero(found.any(axis=0))
        if not len(columns) or BAD not in verdicts:
            return
        wrong = found[:, columns]

        def spread(values: dict[int, Bytes]) -> dict[int, Bytes]:
            whole = {symbol: np.zeros(found.shape[1], np.uint8) for symbol in values}
            for symbol, value in values.items():
                whole[symbol][columns] = value
            return whole

        bad, suspect, doubtful = (
            [symbol for symbol, verdict in enumerate(verdicts) if verdict in verdicts_taken]
            for verdicts_taken in ((BAD,), (BAD, SUSPECT), (BAD, SUSPECT, UNKNOWN))
        )
        erased: dict[int, Bytes] = {}
        if len(bad) <= len(found):
            erased, _ = rs.decode(wrong, bad)
            yield spread(erased)
        # word by word: errors at unknown positions, but not in a block that is known to be right
        errors, sure = rs.decode(wrong, [])
        right = {s for s in range(self.layout.strips) if s >= len(verdicts) or verdicts[s] in (GOOD, UNPROVEN)}
        for symbol in right & errors.keys():
            sure &= errors[symbol] == 0
        # two errors can look like a single one elsewhere, but rarely do; damage is contiguous, so trust the
        # neighbouring words
        area = columns // NEIGHBOURS
        sure &= np.bincount(area, sure)[area] * 2 > np.bincount(area)[area]
        nothing = np.zeros(len(columns), np.uint8)
        yield spread({s: np.where(sure, errors.get(s, nothing), erased.get(s, nothing)) for s in bad})
        for symbols, fewer in ((suspect, bad), (doubtful, suspect)):
            if len(fewer) < len(symbols) <= len(found):
                yield spread(rs.decode(wrong, symbols)[0])

    def _accept(self, block: int, correction: Bytes) -> bool:
        """Write the corrected block if its hash now matches, and judge the blocks below it."""
        import numpy as np

        data = (np.frombuffer(self._read(block), np.uint8) ^ correction).tobytes()
        level, number = self._locate(block)
        if not self._matches(data, level, number):
            return False
        if self.unwritten is None:
            on_hash_device, offset = self.layout.place(block)
            write_exactly(self.covered.hash_fd if on_hash_device else self.covered.data_fd, data, offset)
        else:
            self.unwritten[block] = data
        self.fixed.append(block)
        self.corrected += int(np.count_nonzero(correction))
        self.status[block] = GOOD
        self._judge_below(level, number)
        return True

    def _judge_below(self, level: int, number: int) -> None:
        """Judge all blocks below a hash block that is now right."""
        right = [(level, number)] if level >= 0 else []
        while right:
            level, number = right.pop()
            for child, block in enumerate(self._below(level, number), number * self.sb.per_block):
                good = self._matches(self._read(block), level - 1, child)
                self._set(block, GOOD if good else BAD)
                if good and level:
                    right.append((level - 1, child))

    def _syndromes(self, number: int) -> Bytes:
        """Return (roots, block size): the syndromes of the words of a round, as stored on disk."""
        import numpy as np

        from erofs_edge.verity import rs

        layout, pieces = self.layout, []
        for start in range(0, layout.block_size, COLUMNS):
            width = min(COLUMNS, layout.block_size - start)
            first = number * layout.block_size + start
            rows = self.covered.columns(first, width)
            for symbol, block in enumerate(self._members(number)):
                if self.unwritten and block in self.unwritten:
                    rows[symbol] = np.frombuffer(self.unwritten[block], np.uint8)[start : start + width]
            size = width * layout.roots
            stored = read_exactly(self.fec_fd, size, layout.offset + first * layout.roots).ljust(size, b"\0")
            parity = np.frombuffer(stored, np.uint8).reshape(width, layout.roots).T
            pieces.append(rs.syndromes(rs.parity(list(rows), layout.roots) ^ parity))
        return np.concatenate(pieces, axis=1)

    def _matches(self, data: bytes, level: int, number: int) -> bool:
        """Whether this is block `number` of a level. The block above it must be right."""
        digest = hash_blocks(data, len(data), self.sb)[: self.sb.digest_size]
        if level + 1 == len(self.levels):
            return digest == self.root
        above = self._read(self._block(level + 1, number // self.sb.per_block))
        offset = number % self.sb.per_block * self.sb.slot_size
        return digest == above[offset : offset + len(digest)]

    def _read(self, block: int) -> bytes:
        if self.unwritten and block in self.unwritten:
            return self.unwritten[block]
        on_hash_device, offset = self.layout.place(block)
        fd = self.covered.hash_fd if on_hash_device else self.covered.data_fd
        return read_exactly(fd, self.layout.block_size, offset)

    def _set(self, block: int, verdict: int) -> None:
        """Record a verdict. If it is new information for a round, queue that round (again)."""
        if self.status[block] != verdict:
            self.status[block] = verdict
            number = block % self.layout.rounds
            if verdict in (GOOD, BAD) and number not in self.queued:
                self.queued.add(number)
                self.waiting.append(number)

    def _members(self, number: int) -> range:
        """Return the covered blocks of a round, in the order of their symbols."""
        return range(number, self.layout.blocks, self.layout.rounds)

    def _block(self, level: int, number: int) -> int:
        """Return the covered block that is block `number` of a level; level -1 is the data."""
        if level < 0:
            return number
        return self.layout.data_blocks + self.levels[level].start + number - self.layout.hash_start

    def _below(self, level: int, number: int) -> range:
        """Return the covered blocks whose digests are in block `number` of a tree level."""
        count = self.levels[level - 1].count if level else self.sb.data_blocks
        first = number * self.sb.per_block
        start = self._block(level - 1, first)
        return range(start, start + min(self.sb.per_block, count - first))

    def _locate(self, block: int) -> tuple[int, int]:
        """Return the level of a covered block, and its number in that level."""
        if block < self.layout.data_blocks:
            return -1, block
        at = block - self.layout.data_blocks + self.layout.hash_start
        return next((i, at - lv.start) for i, lv in enumerate(self.levels) if lv.start <= at < lv.start + lv.count)


def _find(status: bytearray, verdicts: bytes, start: int, end: int) -> Iterator[int]:
    """Yield the blocks in [start, end) that have one of these verdicts."""
    for match in re.compile(b"[" + re.escape(verdicts) + b"]").finditer(status, start, end):
        yield match.start()
