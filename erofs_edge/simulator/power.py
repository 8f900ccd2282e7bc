# SPDX-License-Identifier: Apache-2.0
"""Power cuts: derive from what a disk was given what may be on its medium after a power loss.

An operation runs once on a disk that keeps a log; each cut is then computed from the log, without running it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from erofs_edge.simulator.disk import SECTOR, Cache, Write


def cut(before: bytes | bytearray, log: Sequence[Write], count: int, cache: Cache, random: Random) -> bytearray:
    """The content of a medium that held `before`, if the power fails while operation `count` of the log is in progress.

    `count` from 0 to len(log); at len(log) everything is done, but what was not flushed is still in the cache.
    """
    medium = bytearray(before)
    done, current = log[:count], log[count : count + 1]
    if cache == "write-through":
        for write in done:
            medium[write.offset : write.offset + len(write.data)] = write.data
        for write in current:
            _some_sectors(medium, write, random.randrange(_count(write) + 1) if write.data else 0)
        return medium
    flushed = max((at + 1 for at, write in enumerate(done) if write.is_flush), default=0)
    for write in done[:flushed]:
        medium[write.offset : write.offset + len(write.data)] = write.data
    _any_sectors(medium, [write for write in (*done[flushed:], *current) if write.data], cache, random)
    return medium


def cuts(
    before: bytes | bytearray, log: Sequence[Write], cache: Cache, random: Random
) -> Iterator[tuple[int, bytearray]]:
    """(operation, medium) before the first operation and after every write and flush: len(log) + 1 of them."""
    for count in range(len(log) + 1):
        yield count, cut(before, log, count, cache, random)


def _some_sectors(medium: bytearray, write: Write, count: int) -> None:
    """The first `count` sectors of a write."""
    part = write.data[: count * SECTOR]
    medium[write.offset : write.offset + len(part)] = part


def _any_sectors(medium: bytearray, pending: list[Write], cache: Cache, random: Random) -> None:
    """What was in the cache, in any order: all, nothing or some sectors of each write; one may be torn."""
    pieces: list[tuple[int, bytes]] = []
    for write in random.sample(pending, len(pending)):
        kind = random.randrange(3)
        if kind == 0:
            continue
        sectors = [(write.offset + at, write.data[at : at + SECTOR]) for at in range(0, len(write.data), SECTOR)]
        pieces += sectors if kind == 1 else random.sample(sectors, random.randrange(len(sectors) + 1))
    for offset, data in pieces:
        medium[offset : offset + len(data)] = data
    if cache == "torn" and pending:
        write = random.choice(pending)
        at = random.randrange(_count(write)) * SECTOR
        data = write.data[at : at + SECTOR]
        data = data[: random.randrange(len(data))] if random.randrange(2) else random.randbytes(len(data))
        medium[write.offset + at : write.offset + at + len(data)] = data


def _count(write: Write) -> int:
    return -(-len(write.data) // SECTOR)
