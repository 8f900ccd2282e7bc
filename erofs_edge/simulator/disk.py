# SPDX-License-Identifier: Apache-2.0
"""A disk in memory that fails as disks do: bit rot, torn writes, stuck sectors, a cache that lies, power loss.

Nothing here is random by itself: pass in a seeded `random.Random` for randomness.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

SECTOR = 512  # bytes that a disk writes atomically

Cache = Literal["write-through", "reordered", "torn"]
"""What is on the medium after a power loss:

write-through  all that was written, in order, and the first sectors of the write in progress
reordered      everything up to the last flush; of later writes any sectors, each completely old or new
torn           as reordered, and one sector may be half old, half new, or garbage
"""
CACHES: tuple[Cache, ...] = ("write-through", "reordered", "torn")


class PowerLossError(OSError):
    """The disk lost power in the middle of an operation: it does nothing more."""

    def __init__(self) -> None:
        super().__init__(errno.ENODEV, "the power is gone")


@dataclass(frozen=True, slots=True)
class Write:
    """One write as given to the disk; a flush is a Write without data."""

    offset: int
    data: bytes

    @property
    def is_flush(self) -> bool:
        return not self.data


FLUSH = Write(0, b"")


@dataclass(slots=True)
class SimulatedDisk:
    """A simulated disk.

    memory   what is on the disk; reads see it
    stuck    sectors (numbers) that keep their content, whatever is written
    unreadable  sectors that give an I/O error
    wraps    bytes that a counterfeit disk really has: higher addresses map to lower ones
    lies     flushes are acknowledged and do nothing, so a power cut loses more
    log      what was written and flushed, for `cut`; None keeps none
    power    operations (writes, zeros, flushes) until the power fails; None for never
    """

    memory: bytearray
    stuck: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    wraps: int | None = None
    lies: bool = False
    log: list[Write] | None = None
    power: int | None = None

    @classmethod
    def of_size(cls, size: int, fill: bytes = b"\0") -> SimulatedDisk:
        """A disk of `size` bytes, filled with one byte."""
        return cls(bytearray(fill * size))

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.memory)

    def read(self, offset: int, length: int) -> bytes:
        """Raises OSError(EIO) for an unreadable sector. Shorter at the end of the disk."""
        if self.power is not None and self.power <= 0:
            raise PowerLossError
        if self.unreadable and not self.unreadable.isdisjoint(_sectors(offset, length)):
            raise OSError(errno.EIO, "Input/output error")
        at = self._place(offset)
        with memoryview(self.memory) as view:
            return bytes(view[at : at + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Raises OSError(ENOSPC) past the end, PowerLossError if the power fails during it."""
        if offset < 0 or offset + len(data) > self.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._spend()
        raw = bytes(data)
        if self.log is not None and raw:
            self.log.append(Write(offset, raw))
        put(self.memory, self._place(offset), raw, self.stuck)

    def flush(self) -> None:
        """Make everything written durable, unless the disk lies."""
        self._spend()
        if self.log is not None and not self.lies:
            self.log.append(FLUSH)

    def rot(self, random: Random, places: Iterable[int] | int = 1) -> list[int]:
        """Flip a bit at each of these bytes, or at a number of random ones; return their offsets."""
        chosen = [random.randrange(self.size) for _ in range(places)] if isinstance(places, int) else list(places)
        for place in chosen:
            self.memory[place] ^= 1 << random.randrange(8)
        return chosen

    def _spend(self) -> None:
        if self.power is not None:
            if self.power <= 0:
                raise PowerLossError
            self.power -= 1

    def _place(self, offset: int) -> int:
        return offset if self.wraps is None else offset % self.wraps


def put(memory: bytearray, offset: int, data: bytes, stuck: set[int]) -> None:
    """Write, except to stuck sectors."""
    if not stuck:
        memory[offset : offset + len(data)] = data
        return
    for sector in _sectors(offset, len(data)):
        start, end = max(offset, sector * SECTOR), min(offset + len(data), (sector + 1) * SECTOR)
        if sector not in stuck:
            memory[start:end] = data[start - offset : end - offset]


def _sectors(offset: int, length: int) -> range:
    return range(offset // SECTOR, -(-(offset + length) // SECTOR))
