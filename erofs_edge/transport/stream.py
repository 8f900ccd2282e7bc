# SPDX-License-Identifier: Apache-2.0
"""A protocol as a generator that asks for bytes: no socket, no clock, no copies.

A machine yields a buffer and continues once it has been filled. The owner of the connection receives directly into
`buffer` and reports with `filled`, so large payloads are never copied. The machine's output goes elsewhere (to its
owner's outbox): it never waits for sending.
"""

from __future__ import annotations

from collections.abc import Generator

from erofs_edge.errors import ProtocolError

Machine = Generator[memoryview, None, None]
Bytes = Generator[memoryview, None, bytes]


class Feed:
    """Drives one machine. `done` once it has returned: no further byte is expected."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._buffer = memoryview(b"")
        self._at = 0
        self.done = False
        self._advance()

    @property
    def buffer(self) -> memoryview:
        """Where to receive the next bytes; never empty before `done`."""
        return self._buffer[self._at :]

    def filled(self, count: int) -> None:
        """Report that `count` bytes have been put into `buffer`. Raises what the machine raises, such as
        ProtocolError.
        """
        self._at += count
        if self._at == len(self._buffer):
            self._advance()

    def feed(self, data: bytes) -> None:
        """Process these bytes. Raises ProtocolError if there are more than the protocol expects."""
        rest = memoryview(data)
        while rest:
            if self.done:
                raise ProtocolError(f"{len(rest)} bytes after the end of the conversation")
            buffer = self.buffer
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            rest = rest[count:]
            self.filled(count)

    def _advance(self) -> None:
        self._at = 0
        try:
            self._buffer = next(self._machine)
            while not self._buffer:
                self._buffer = next(self._machine)
        except StopIteration:
            self._buffer = memoryview(b"")
            self.done = True


def take(count: int) -> Bytes:
    """The next `count` bytes, inside a machine: ``header = yield from take(8)``."""
    buffer = bytearray(count)
    if count:
        yield memoryview(buffer)
    return bytes(buffer)
