# SPDX-License-Identifier: Apache-2.0
"""Digests of many blocks: large slices on threads, in order, with a few slices in memory at a time.

One task takes megabytes, since tasks of single blocks are slower than one thread; inside a task each block costs
a copy() of the salted state and one update(), during which hashlib gives up the interpreter's lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from erofs_edge.errors import FormatError
from erofs_edge.verity.superblock import Superblock

SLICE = 4 << 20  # bytes; a multiple of every block size

Progress = Callable[[int, int], None]
"""progress(done, total), both in bytes"""

Count = Callable[[int], None]
"""count(bytes done since the last call)"""


def hash_blocks(data: bytes, block_size: int, sb: Superblock) -> bytes:
    """The digest slots of whole blocks, joined: `sb.slot_size` bytes for each block."""
    copy, digests = sb.salted().copy, []
    for start in range(0, len(data), block_size):
        state = copy()
        # a slice of bytes is copied, which takes less time than making a view of it
        state.update(data[start : start + block_size])
        digests.append(state.digest())
    padding = bytes(sb.slot_size - sb.digest_size)
    return padding.join([*digests, b""]) if padding else b"".join(digests)


def hashed_slices(
    sb: Superblock,
    fd: int,
    start: int,
    end: int,
    block_size: int,
    *,
    jobs: int | None = None,
    count: Count | None = None,
) -> Iterator[bytes]:
    """Digest slots of the whole blocks in bytes [start, end) of a file, in order, a slice at a time.

    Raises FormatError where the file ends early.
    """

    def task(offset: int, length: int) -> bytes:
        data = read_exactly(fd, length, offset)
        if len(data) != length:
            raise FormatError("the file ends inside the blocks to hash", where=f"offset {offset + len(data):#x}")
        return hash_blocks(data, block_size, sb)

    workers = jobs or len(os.sched_getaffinity(0))
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
                waiting.append((length, pool.submit(task, offset, length)))
                if len(waiting) > workers + 1:
                    yield next_done()
            while waiting:
                yield next_done()
        finally:
            for _, future in waiting:
                future.cancel()


def counter(progress: Progress | None, total: int) -> Count | None:
    """What adds up the bytes done and tells `progress`."""
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """pread until `length` bytes or the end of the file."""
    data = os.pread(fd, length, offset)
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def write_exactly(fd: int, data: bytes, offset: int) -> None:
    """pwrite until all is written."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def file_size(fd: int) -> int:
    """Bytes of a file or block device."""
    return os.lseek(fd, 0, os.SEEK_END)
