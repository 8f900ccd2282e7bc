# SPDX-License-Identifier: Apache-2.0
"""Digests of many blocks: large slices, hashed by processes or threads, in order, a few of them in memory at a time.

One task takes megabytes, since tasks of single blocks are slower than one thread. Inside a task, each block costs a
copy() of the salted state and one update(), during which hashlib releases the GIL. Two threads doing that all the time
lose more on handing over the GIL than they gain, so large files are hashed by forked processes (296 MB on two
processors: 0.22 s; one thread 0.40 s, two threads 0.42 to 0.68 s).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from erofs_edge import reading
from erofs_edge.errors import FormatError
from erofs_edge.forks import ending_here, may_fork, tell
from erofs_edge.threads import processors
from erofs_edge.verity.superblock import Superblock

SLICE = 4 << 20  # bytes; a multiple of every block size
FORK_MIN = 32 << 20  # bytes from which forking processes pays off

Progress = Callable[[int, int], None]
"""progress(done, total), both in bytes"""

Count = Callable[[int], None]
"""count(bytes done since the last call)"""


class Reads(Protocol):
    """Something other than a local file, or a part of one: read(offset, length) returns exactly that many of its `size`
    bytes or raises an ErofsEdgeError. Used by one thread at a time."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


Source = int | Reads
"""a file descriptor, or something that can be read in its place"""


def hash_blocks(data: bytes, block_size: int, sb: Superblock) -> bytes:
    """Return the digest slots of whole blocks, joined: `sb.slot_size` bytes per block."""
    copy, digests = sb.salted().copy, []
    for start in range(0, len(data), block_size):
        state = copy()
        # slicing copies the bytes, which is faster than creating a memoryview
        state.update(data[start : start + block_size])
        digests.append(state.digest())
    padding = bytes(sb.slot_size - sb.digest_size)
    return padding.join([*digests, b""]) if padding else b"".join(digests)


def hashed_slices(
    sb: Superblock,
    source: Source,
    start: int,
    end: int,
    block_size: int,
    *,
    jobs: int | None = None,
    count: Count | None = None,
) -> Iterator[bytes]:
    """Yield the digest slots of the whole blocks in bytes [start, end) of a source, in order, one slice at a time.

    A source that is not a file is read here, slice by slice, while threads hash the previous slices. Raises FormatError
    if the source ends early.
    """

    def fetch(offset: int, length: int) -> bytes:
        data = read_exactly(source, length, offset)
        if len(data) != length:
            raise FormatError("the file ends inside the blocks to hash", where=f"offset {offset + len(data):#x}")
        return data

    def task(offset: int, length: int) -> bytes:
        return hash_blocks(fetch(offset, length), block_size, sb)

    workers, is_file = jobs or processors(), isinstance(source, int)
    if is_file and may_fork() and workers > 1 and end - start >= FORK_MIN:
        yield from _forked(task, range(start, end, SLICE), end, workers, sb.slot_size * SLICE // block_size, count)
        return
    waiting: deque[tuple[int, Future[bytes]]] = deque()

    def next_done() -> bytes:
        length, future = waiting.popleft()
        digests = future.result()
        if count is not None:
            count(length)
        return digests

    with ThreadPoolExecutor(workers) as pool:
        try:
            for offset in range(start, end, SLICE):
                length = min(SLICE, end - offset)
                if is_file:
                    future = pool.submit(task, offset, length)
                else:
                    future = pool.submit(hash_blocks, fetch(offset, length), block_size, sb)
                waiting.append((length, future))
                if len(waiting) > workers + 1:
                    yield next_done()
            while waiting:
                yield next_done()
        finally:
            for _, future in waiting:
                future.cancel()


def _forked(
    task: Callable[[int, int], bytes], offsets: range, end: int, workers: int, most: int, count: Count | None
) -> Iterator[bytes]:
    """Yield the results of task(offset, length) in order, each process taking every `workers`th offset. `most`: bytes
    of the largest result.

    What a process does not deliver, because the file ends early or the process was killed, is done here.
    """
    pipes, children = [], []
    try:
        for worker in range(min(workers, len(offsets))):
            reading, writing = os.pipe()
            pipes.append(open(reading, "rb"))  # noqa: SIM115  closed below
            if (child := os.fork()) == 0:
                for pipe in pipes:
                    os.close(pipe.fileno())  # otherwise a write would never fail here
                _deliver(task, offsets[worker::workers], end, writing)
            os.close(writing)
            children.append(child)
        for number, offset in enumerate(offsets):
            length = min(SLICE, end - offset)
            size = most * length // SLICE
            digests = pipes[number % workers].read(size)
            yield digests if len(digests) == size else task(offset, length)
            if count is not None:
                count(length)
    finally:
        for pipe in pipes:
            pipe.close()  # a process that has not finished fails at its next write
        for child in children:
            os.waitpid(child, 0)


def _deliver(task: Callable[[int, int], bytes], offsets: range, end: int, pipe: int) -> None:
    """Write the results to the pipe one after the other. Runs in a forked process, which ends here."""
    with ending_here():
        for offset in offsets:
            tell(pipe, task(offset, min(SLICE, end - offset)))


def counter(progress: Progress | None, total: int) -> Count | None:
    """Return a function that adds up the bytes done and reports them to `progress`."""
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def read_exactly(source: Source, length: int, offset: int) -> bytes:
    """Read `length` bytes from `offset` on; fewer only at the end of the source."""
    if isinstance(source, int):
        return reading.read_exactly(source, length, offset)
    length = min(length, source.size - offset)
    return source.read(offset, length) if length > 0 else b""


def file_size(source: Source) -> int:
    """Return the size in bytes of a file, a block device or another source."""
    return os.lseek(source, 0, os.SEEK_END) if isinstance(source, int) else source.size
