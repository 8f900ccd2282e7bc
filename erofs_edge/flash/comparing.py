# SPDX-License-Identifier: Apache-2.0
"""Read what a target holds and compare it with the image, byte by byte.

A target on this machine is read by several threads at once, as far as that is faster; reading does not hold
Python's lock. Each thread reuses its buffers, because allocating new memory each time costs more than reading into
it. A large file is read by two processes instead (`two_processes.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from erofs_edge.flash.target import BLOCK, Target
from erofs_edge.forks import may_fork
from erofs_edge.threads import in_order, processors

CHUNK = 4 << 20  # bytes compared at once
NEAR = {"file": 256 << 10, "block": 512 << 10}
"""the same for a target on this machine: larger pieces of a file do not stay in the processor's cache. What comes from
a device is not in it anyway, and threads wait for each other between any two pieces"""
SHARES = {"file": 8 << 20, "block": 1 << 20}
"""bytes handed to a thread at a time, large so that hand-overs are few; on a device, threads read adjacent pieces"""
WORTH = 32 << 20  # bytes of a file from which a second process pays off

Range = tuple[int, int]
Fill = Callable[[int, bytearray], None]
"""fill(offset, buffer): fill the buffer with what the target should hold from `offset` on"""


def differences(
    ranges: Iterable[Range],
    fill: Fill,
    target: Target,
    told: Callable[[int], None] = lambda done: None,
) -> Iterator[Range]:
    """Yield (start, end) of the blocks that differ, in order. `told` is called with the bytes compared so far, over all
    ranges.

    Raises OSError if the target cannot be read, and whatever `fill` raises.
    """
    reader, done = _Reader(fill, target), 0
    if target.at_once < 2:
        for start, end in pieces(ranges, reader.piece):
            yield from reader.compare(start, end)
            done += end - start
            told(done)
        return
    shares = list(pieces(ranges, SHARES.get(target.identity.kind, CHUNK)))
    with closing(_shared(shares, reader, target)) as looked:
        for (start, end), found in looked:
            yield from found
            done += end - start
            told(done)


def _shared(shares: list[Range], reader: _Reader, target: Target) -> Generator[tuple[Range, list[Range]], None, None]:
    """Yield each share with its blocks that differ."""
    large = sum(end - start for start, end in shares) >= WORTH
    if large and target.file is not None and processors() > 1 and may_fork():
        from erofs_edge.flash.two_processes import compared

        with closing(compared(shares, reader.compare)) as looked:
            yield from zip(shares, looked, strict=True)
    else:
        yield from in_order(lambda share: reader.compare(*share), shares, target.at_once)


def pieces(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """The same ranges in pieces of at most `size` bytes."""
    for start, end in ranges:
        for offset in range(start, end, size):
            yield offset, min(offset + size, end)


def differing(have: bytes, want: bytes | bytearray, offset: int) -> Iterator[Range]:
    """Yield (start, end) of the blocks that differ, plus `offset`; missing bytes count as different."""
    if have == want:
        return
    for at in range(0, len(want), BLOCK):
        if have[at : at + BLOCK] != want[at : at + BLOCK]:
            yield offset + at, offset + min(at + BLOCK, len(want))


class _Reader:
    """Compares pieces on any thread."""

    def __init__(self, fill: Fill, target: Target) -> None:
        self.piece = NEAR.get(target.identity.kind, CHUNK)
        self._fill, self._target = fill, target
        self._kept = threading.local()

    def compare(self, start: int, end: int) -> list[Range]:
        """Return the blocks that differ."""
        found: list[Range] = []
        for at, after in pieces([(start, end)], self.piece):
            want = self._buffer(after - at)
            self._fill(at, want)
            if not self._target.holds(at, want):
                found.extend(differing(self._target.read(at, after - at), want, at))
        return found

    def _buffer(self, size: int) -> bytearray:
        kept: bytearray | None = getattr(self._kept, "buffer", None)
        if kept is None or len(kept) != size:
            kept = self._kept.buffer = bytearray(size)
        return kept
