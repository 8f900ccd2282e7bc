# SPDX-License-Identifier: Apache-2.0
"""Memory that a process shares with its forked children: an unnamed file of units that are allocated in runs.

It is written and read as a file: if it were mapped, each process would take a fault on each page. Only the owner maps
it, for views of results that need no copy.
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

UNIT = 128 << 10  # bytes; the unit of allocation
UNITS = 1280  # 160 MiB
NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, linux/memfd.h: systems may require it, since Linux 6.3
BUFFERS_MAX = 1024  # IOV_MAX, linux/uio.h: limit per call


class Arena:
    """UNITS units, all free at first; only the creating process tracks them. Raises OSError if there are no such
    files."""

    def __init__(self) -> None:
        self._file = _file_in_memory()
        try:
            os.ftruncate(self._file, UNIT * UNITS)
            self._map = mmap.mmap(self._file, UNIT * UNITS)
        except OSError:
            self.close()
            raise
        self._free = (1 << UNITS) - 1  # a bit for each unit
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, units: int) -> int | None:
        """Allocate a run of free units and return the first, the lowest possible; None if there is no such run."""
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
        """Free these units."""
        self._free |= (1 << units) - 1 << first

    def lend(self, first: int, units: int) -> memoryview:
        """Return the bytes of allocated units. The units are freed when the last view of them is gone."""
        lease = _lease_type(units).from_buffer(self._map, first * UNIT)
        lease.returned, lease.place = self._returned, (first, units)
        return memoryview(lease).cast("B")

    def free_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first unit, number of units) of each maximal free run."""
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
        """Write all buffers back to back. Raises OSError if there is not enough memory."""
        at = first * UNIT
        for number in range(0, len(buffers), BUFFERS_MAX):
            some = buffers[number : number + BUFFERS_MAX]
            size = sum(map(len, some))
            if os.pwritev(self._file, some, at) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            at += size

    def drop(self, first: int, units: int) -> None:
        """Return the memory of unused units to the system: they then read as zeros."""
        with suppress(OSError):  # this only saves memory
            self._map.madvise(mmap.MADV_REMOVE, first * UNIT, units * UNIT)

    def close(self) -> None:
        """End reading and writing. Lent views stay valid."""
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


def _file_in_memory() -> int:
    """Return the descriptor of a new, empty memory file. Raises OSError if the system does not have them."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        return os.memfd_create("erofs-edge", os.MFD_CLOEXEC | NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("erofs-edge")
