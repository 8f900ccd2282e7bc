# SPDX-License-Identifier: Apache-2.0
"""Compare shares of a local file in this process and a forked one.

Each process has its own interpreter, whereas two threads would wait for each other between any two reads. A process
that finishes a share takes the next one; what the other process fails to deliver, because it was killed or met an
error, is done here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from struct import Struct

from erofs_edge.forks import ending_here, tell

Range = tuple[int, int]
Compare = Callable[[int, int], list[Range]]

AT_ONCE = 1024
"""number of shares with tickets in the pipe, which holds at least 4096 bytes everywhere"""
_TICKET = Struct("<I")
_HEAD = Struct("<II")
_RANGE = Struct("<QQ")


def compared(shares: Sequence[Range], compare: Compare) -> Generator[list[Range], None, None]:
    """Yield compare(start, end) of each share, in order. Raises what `compare` raises. The other process ends with the
    iterator.

    Only for a process without other threads.
    """
    for first in range(0, len(shares), AT_ONCE):
        yield from _together(shares[first : first + AT_ONCE], compare)


def _together(shares: Sequence[Range], compare: Compare) -> Iterator[list[Range]]:
    tickets, given = os.pipe()
    os.write(given, b"".join(_TICKET.pack(number) for number in range(len(shares))))
    os.close(given)
    other = _Other(tickets, shares, compare)
    found: dict[int, list[Range]] = {}
    try:
        for wanted in range(len(shares)):
            while wanted not in found:
                own = _taken(tickets)
                if own is not None:
                    found[own] = compare(*shares[own])
                if not other.tells(found, wait=own is None) and own is None:
                    found[wanted] = compare(*shares[wanted])
            yield found.pop(wanted)
    finally:
        other.close()
        os.close(tickets)


def _taken(tickets: int) -> int | None:
    """Take the number of a free share; None if there are no more."""
    ticket = os.read(tickets, _TICKET.size)
    return _TICKET.unpack(ticket)[0] if ticket else None


class _Other:
    """The other process, as seen by its parent."""

    def __init__(self, tickets: int, shares: Sequence[Range], compare: Compare) -> None:
        self._pipe, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            _work(tickets, shares, compare, self._pipe, writing)
        os.close(writing)

    def tells(self, found: dict[int, list[Range]], *, wait: bool) -> bool:
        """Put into `found` what the other process found in a share. False if it has no result yet or, with `wait`,
        never will.
        """
        os.set_blocking(self._pipe, wait)
        try:
            head = os.read(self._pipe, _HEAD.size)
        except BlockingIOError:
            return False
        os.set_blocking(self._pipe, True)
        head += self._rest(_HEAD.size - len(head))
        if len(head) < _HEAD.size:
            return False
        number, count = _HEAD.unpack(head)
        ranges = self._rest(count * _RANGE.size)
        if len(ranges) < count * _RANGE.size:
            return False
        found[number] = list(_RANGE.iter_unpack(ranges))
        return True

    def _rest(self, size: int) -> bytes:
        """This many bytes, or fewer if the process has ended."""
        data = b""
        while len(data) < size and (more := os.read(self._pipe, size - len(data))):
            data += more
        return data

    def close(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)  # it may have ended by itself, but is only now waited for
        os.waitpid(self._child, 0)
        os.close(self._pipe)


def _work(tickets: int, shares: Sequence[Range], compare: Compare, reading: int, writing: int) -> None:
    """The other process's work; it exits here."""
    with ending_here():
        os.close(reading)  # the parent's end: without it, this process also ends with its parent
        while (number := _taken(tickets)) is not None:
            found = compare(*shares[number])
            tell(writing, _HEAD.pack(number, len(found)) + b"".join(_RANGE.pack(*one) for one in found))
