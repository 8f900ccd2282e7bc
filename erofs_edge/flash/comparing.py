# SPDX-License-Identifier: Apache-2.0
"""What a target holds, byte by byte: read, and compared with what an image has there.

A target of this machine is read by several threads at once, as far as that makes it faster; reading does not hold
Python's lock. Each thread keeps its memory: what is new each time costs more than to read it. A large file is read by
two processes instead (`two_processes.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from erofs_edge.flash.target import BLOCK, Target
from erofs_edge.forks import may_fork
from erofs_edge.threads import in_order, processors

CHUNK = 4 << 20  # bytes that are compared at once
NEAR = {"file": 256 << 10, "block": 256 << 10}
"""the same of what is read by this machine: larger pieces leave the processor's cache"""
SHARES = {"file": 8 << 20, "block": 1 << 20}
"""bytes that a thread is given at a time: few hand-overs; but of a device, what lies side by side"""
WORTH = 32 << 20  # bytes of a file for which a process of its own pays

Range = tuple[int, int]
Fill = Callable[[int, bytearray], None]
"""fill(offset, buffer): put there what the target ought to hold from that offset on"""


def differences(
    ranges: Iterable[Range],
    fill: Fill,
    target: Target,
    told: Callable[[int], None] = lambda done: None,
) -> Iterator[Range]:
    """(start, end) of the blocks that differ, in order. told(bytes of all ranges that were compared).

    Raises OSError where the target cannot be read, and what `fill` raises.
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
    """Each share, and the blocks in it that differ."""
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
    """(start, end) of the blocks that differ, `offset` added; bytes that are missing differ."""
    if have == want:
        return
    for at in range(0, len(want), BLOCK):
        if have[at : at + BLOCK] != want[at : at + BLOCK]:
            yield offset + at, offset + min(at + BLOCK, len(want))


class _Reader:
    """Compares, on any thread."""

    def __init__(self, fill: Fill, target: Target) -> None:
        self.piece = NEAR.get(target.identity.kind, CHUNK)
        self._fill, self._target = fill, target
        self._kept = threading.local()

    def compare(self, start: int, end: int) -> list[Range]:
        """The blocks that differ."""
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
