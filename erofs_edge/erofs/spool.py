# SPDX-License-Identifier: Apache-2.0
"""File data of an image whose layout is not known yet, because a baseline or a profile influences it.

Data arrives as runs of blocks that must stay together, in a separate address space, as if the image contained nothing
else. What is byte for byte where the baseline has the file of that path is written to its old place at once; the rest
waits in a temporary file. Memory use is a few words per run.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from erofs_edge.erofs.output import Chunk, Sink
from erofs_edge.erofs.space import Space

if TYPE_CHECKING:
    from erofs_edge.erofs.baseline import Baseline
    from erofs_edge.erofs.hot import Hot

COPY = 4 << 20  # bytes
END = 1 << 63  # end of a whole file
COLD = 1 << 62


class Run:
    """Blocks that must stay together.

    start    the first block, in the spool's own addresses
    size     bytes
    old      the block where the baseline has the data of this path or, once `kept`, the same data; -1 for none
    same     bytes from the start that are equal to what is there
    kept     all of it is equal, and nothing else claims the place
    spooled  its position in the temporary file; -1 if it is in the image already, at `old`
    place    the first block in the image
    rank     if a profile names parts of files: the position of its first use, COLD if none
    """

    __slots__ = ("kept", "old", "place", "rank", "same", "size", "spooled", "start")

    def __init__(self, start: int, old: int) -> None:
        self.start, self.old = start, old
        self.size = self.same = self.rank = 0
        self.spooled = self.place = -1
        self.kept = False

    def blocks(self, block_size: int) -> int:
        return -(-self.size // block_size)


class NoBaseline:
    """Stands in for a missing baseline: all data has to wait for its place."""

    def data_block(self, path: bytes, offset: int) -> int:
        return -1

    def holds(self, first: int, blocks: int) -> bool:
        return False

    def starts(self, chunk_size: int | None) -> dict[bytes, list[int]]:
        return {}

    def read(self, offset: int, length: int) -> bytes:
        return b""


class Spool:
    """Replaces a Sink for file data.

    `claimed` are the blocks of the image that cannot be used for data, or are kept; runs that find their old place are
    added.
    """

    def __init__(
        self,
        image: Sink,
        waiting: Sink,
        baseline: Baseline | NoBaseline,
        claimed: Space,
        block_size: int,
        hot: Hot | None = None,
    ) -> None:
        self.runs: list[Run] = []
        self.position = 0
        self._image = image
        self._waiting = waiting
        self._baseline = baseline
        self._hot = hot
        self._claimed = claimed
        self._block_size = block_size
        self._dirty: list[tuple[int, int]] = []  # (first, blocks) written to the image and then abandoned

    def start(self, path: bytes, offset: int = 0, end: int | None = None) -> int:
        """Begin a run with bytes [offset, end) of the file at a path. Return its number."""
        self._end_run()
        old = self._baseline.data_block(path, offset)
        self.runs.append(Run(self.position // self._block_size, old))
        if self._hot is not None:
            self.runs[-1].rank = COLD
            self._rank(self.runs[-1], path, offset, END if end is None else end)
        return len(self.runs) - 1

    def use(self, block: int, path: bytes, offset: int, end: int) -> None:
        """Record that the run with that block also holds bytes [offset, end) of the file at a path."""
        if self._hot is not None:
            self._rank(self._run_of(block), path, offset, end)

    def _rank(self, run: Run, path: bytes, offset: int, end: int) -> None:
        assert self._hot is not None  # noqa: S101 - checked by its callers
        rank = self._hot.rank(path, offset, end)
        run.rank = min(run.rank, COLD if rank is None else rank)

    def _run_of(self, block: int) -> Run:
        return self.runs[bisect_right(self.runs, block, key=lambda run: run.start) - 1]

    def append(self, chunks: Sequence[Chunk]) -> None:
        run = self.runs[-1]
        size = sum(map(len, chunks))
        if run.spooled < 0:
            data = b"".join(chunks)
            if self._fits(run, data):
                self._image.write_at(run.old * self._block_size + run.size, data)
                run.same += size
            else:
                self._unkeep(run)
                chunks = [data]
        if run.spooled >= 0:
            self._waiting.append(chunks)
        run.size += size
        self.position += size

    def read(self, offset: int, length: int) -> bytes:
        """Return what was appended, by its position; within one run."""
        block = offset // self._block_size
        run = self._run_of(block)
        return self._read(run, offset - run.start * self._block_size, length)

    def rewind(self, number: int) -> None:
        """Discard a run's data and all runs after it; the run begins again."""
        for run in self.runs[number:]:
            if run.kept:
                self._claimed.release(run.old, run.blocks(self._block_size))
            if run.spooled < 0 and run.size:
                self._dirty.append((run.old, run.blocks(self._block_size)))
        del self.runs[number + 1 :]
        run = self.runs[number]
        self.position = run.start * self._block_size
        run.size = run.same = 0
        run.spooled, run.kept = -1, False

    def finish(self, chunk_size: int | None) -> None:
        """All runs have been appended. Runs not kept yet whose content is elsewhere in the baseline get that place."""
        self._end_run()
        waiting = [run for run in self.runs if run.size and not run.kept]
        starts = self._baseline.starts(chunk_size) if waiting else {}
        for run in waiting:
            first = hashlib.sha256(self._read(run, 0, self._block_size)).digest()
            for old in starts.get(first, ()):
                if self._claimed.is_free(old, run.blocks(self._block_size)) and self._equal(run, old):
                    run.kept = self._claimed.take(old, run.blocks(self._block_size))
                    run.old, run.same = old, run.size
                    break

    def write(self, end: int) -> None:
        """Write every run to its place, and clear what was written elsewhere. `end` is the image's end, in blocks."""
        for run in self.runs:
            if run.spooled < 0 and run.place != run.old:
                self._unkeep(run)
        self._waiting.flush()
        used = Space()
        for run in self.runs:
            used.take(run.place, run.blocks(self._block_size))
        for first, blocks in self._dirty:
            for block in range(first, min(first + blocks, end)):
                if used.is_free(block, 1):
                    self._image.write_at(block * self._block_size, bytes(self._block_size))
        for run in self.runs:
            if run.spooled >= 0:
                for at, data in self.pieces(run):
                    self._image.write_at(run.place * self._block_size + at, data)

    def _fits(self, run: Run, data: bytes) -> bool:
        """Whether the baseline has the same bytes at the run's next position."""
        at = run.old * self._block_size + run.size
        blocks = -(-(run.size + len(data)) // self._block_size)
        if not self._baseline.holds(run.old, blocks) or not self._claimed.is_free(run.old, blocks):
            return False
        old = self._baseline.read(at, len(data))
        if old == data:
            return True
        step = self._block_size
        run.same += next(b for b in range(0, len(data), step) if old[b : b + step] != data[b : b + step])
        return False

    def _unkeep(self, run: Run) -> None:
        """Move a run from the image to the temporary file."""
        at = self._waiting.position
        for _, data in self.pieces(run):
            self._waiting.append([data])
        if run.size:
            self._dirty.append((run.old, run.blocks(self._block_size)))
        run.spooled, run.kept = at, False

    def _end_run(self) -> None:
        if not self.runs:
            return
        run = self.runs[-1]
        if run.size and run.spooled < 0:
            run.kept = self._claimed.take(run.old, run.blocks(self._block_size))

    def _equal(self, run: Run, old: int) -> bool:
        """Whether the baseline has the bytes of a run at a block."""
        at = old * self._block_size
        return self._baseline.holds(old, run.blocks(self._block_size)) and all(
            self._baseline.read(at + offset, len(data)) == data for offset, data in self.pieces(run)
        )

    def pieces(self, run: Run) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of a run, in order."""
        for at in range(0, run.size, COPY):
            yield at, self._read(run, at, min(COPY, run.size - at))

    def _read(self, run: Run, offset: int, length: int) -> bytes:
        if run.spooled >= 0:
            return self._waiting.read(run.spooled + offset, length)
        return self._image.read(run.old * self._block_size + offset, length)
