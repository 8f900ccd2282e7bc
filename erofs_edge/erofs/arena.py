# SPDX-License-Identifier: Apache-2.0
"""Memory that a process shares with those it forks: a file without a name, in units that are given away in runs.

What is written there is written and read as a file: mapped, each process would meet a fault at each of its pages. Only
the owner maps it, for views of results that need no copy.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

UNIT = 128 << 10  # bytes that are given away together
UNITS = 1280  # 160 MiB
NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, linux/memfd.h: systems may ask for it, since Linux 6.3
BUFFERS_MAX = 1024  # IOV_MAX, linux/uio.h: of a call


class Arena:
    """UNITS units, all free. Which are, only the process that made it knows. Raises OSError where there can be no such
    file."""

    def __init__(self) -> None:
        self._file = _file_in_memory(UNIT * UNITS)
        self._map = mmap.mmap(self._file, UNIT * UNITS)
        self._free = (1 << UNITS) - 1  # a bit for each unit
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, units: int) -> int | None:
        """The first of so many free units that follow each other, the lowest there are; None where there are none."""
        self._collect()
        starts, done = self._free, 1
        while done < units and starts:
            step = min(done, units - done)
            starts &= starts >> step
            done += step
        if not starts:
            return None
        first = (starts & -starts).bit_length() - 1
        self._free &= ~((1 << units) - 1 << first)
        return first

    def give_back(self, first: int, units: int) -> None:
        """These are free again."""
        self._free |= (1 << units) - 1 << first

    def lend(self, first: int, units: int) -> memoryview:
        """The bytes of taken units, which are free again when the last view of them is gone."""
        lease = _lease_type(units).from_buffer(self._map, first * UNIT)
        lease.returned, lease.place = self._returned, (first, units)
        return memoryview(lease).cast("B")

    def free_runs(self) -> Iterator[tuple[int, int]]:
        """First unit and number of those that are free, as long runs as there are."""
        self._collect()
        left, first = self._free, 0
        while left:
            taken = (left & -left).bit_length() - 1
            free = (~(left >> taken) & (left >> taken) + 1).bit_length() - 1
            yield first + taken, free
            left, first = left >> taken + free, first + taken + free

    def read(self, first: int, size: int) -> bytes:
        return os.pread(self._file, size, first * UNIT)

    def write(self, first: int, buffers: Sequence[bytes | memoryview]) -> None:
        """All of them, one behind the other. Raises OSError where there is no memory."""
        at = first * UNIT
        for number in range(0, len(buffers), BUFFERS_MAX):
            some = buffers[number : number + BUFFERS_MAX]
            size = sum(map(len, some))
            if os.pwritev(self._file, some, at) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            at += size

    def drop(self, first: int, units: int) -> None:
        """Memory of units that nobody needs goes back to the system: they read as zeros."""
        with suppress(OSError):  # it is less memory, no more
            self._map.madvise(mmap.MADV_REMOVE, first * UNIT, units * UNIT)

    def close(self) -> None:
        """Nothing is read or written any more; what has been lent stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _collect(self) -> None:
        while self._returned:
            self.give_back(*self._returned.popleft())


@cache
def _lease_type(units: int) -> Any:
    def give_back(self: Any) -> None:
        self.returned.append(self.place)

    return type("Lease", (ctypes.c_ubyte * (units * UNIT),), {"__del__": give_back})


def _file_in_memory(size: int) -> int:
    """A descriptor. Raises OSError where there are no such files."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        file = os.memfd_create("erofs-edge", os.MFD_CLOEXEC | NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file = os.memfd_create("erofs-edge")
    os.ftruncate(file, size)
    return file
