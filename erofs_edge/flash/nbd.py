# SPDX-License-Identifier: Apache-2.0
"""A disk behind an NBD server as a target: a board's provisioning system, or any server that exports a disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from erofs_edge.errors import CapacityError, DeviceError, DeviceRefusedError
from erofs_edge.flash.target import LOOKING, Identity, PlainTarget
from erofs_edge.transport.claim import Claim
from erofs_edge.transport.nbd.connect import Connection
from erofs_edge.transport.nbd.wire import Transmission

SMALL = 256 << 10  # bytes: smaller writes wait for others
GATHERED = 4 << 20  # bytes that wait at most
PIECES = 256
LOCAL = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


class NbdTarget(PlainTarget):
    """Writes go through the server; `flush` makes them durable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._claim: Claim | None = None
        self._waiting: list[tuple[int, bytes]] = []
        self._held = 0

    @property
    def identity(self) -> Identity:
        export = self._connection.export
        return Identity(self._connection.address.uri, "nbd", export.size, read_only=export.can(Transmission.READ_ONLY))

    def claim(self) -> None:
        """The protocol cannot express this, so it holds among programs on this machine; a server's refusal shows in its
        answers."""
        export, address = self._connection.export, self._connection.address
        if export.can(Transmission.READ_ONLY):
            said = f"the server says: {export.description}" if export.description else None
            raise DeviceRefusedError("the export is read-only", where=address.uri, hint=said or LOOKING)
        if self._claim is None:
            place = address.socket or f"{LOCAL.get(address.host, address.host)}:{address.port}"
            self._claim = Claim(f"nbd {place} {address.export}", address.uri)

    @property
    def cheap_zeros(self) -> bool:
        return self._connection.export.can(Transmission.SEND_WRITE_ZEROES)

    @property
    def bytes_on_wire(self) -> int:
        return self._connection.sent + self._connection.received

    def read(self, offset: int, length: int) -> bytes:
        self.settle()
        with as_os_error():
            return self._connection.read(offset, min(length, self._connection.size - offset))

    def holds(self, offset: int, want: bytearray) -> bool:
        """Data is compared as it arrives, on each connection's thread."""
        wrong: list[int] = []

        def compare(at: int, data: memoryview) -> None:
            if want[at - offset : at - offset + len(data)] != data:  # copied: memory views are compared byte by byte
                wrong.append(at)

        if offset + len(want) > self._connection.size:
            return False
        self.settle()
        with as_os_error():
            self._connection.deliver(offset, len(want), compare)
        return not wrong

    def write(self, offset: int, data: bytes | memoryview) -> int:
        if len(data) >= SMALL:
            self.settle()
            with as_os_error():
                self._connection.write(offset, data)
            return len(data)
        if any(offset < at + len(held) and at < offset + len(data) for at, held in self._waiting):
            self.settle()
        self._waiting.append((offset, bytes(data)))
        self._held += len(data)
        if self._held >= GATHERED or len(self._waiting) >= PIECES:
            self.settle()
        return len(data)

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        if length < SMALL:
            return False
        if self._waiting:
            self.settle()
        with as_os_error():
            self._connection.post_file(offset, file, at, length)
        return True

    def settle(self) -> None:
        """Send the gathered small writes together, so that scattered blocks do not cost a round trip each, and wait for
        what is under way."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        with as_os_error():
            self._connection.settle()
            if waiting:
                self._connection.write_all(waiting)

    def zero(self, offset: int, length: int) -> None:
        self.settle()
        with as_os_error():
            self._connection.zero(offset, length)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        with as_os_error():
            yield from self._connection.data(offset, length)

    def flush(self) -> None:
        self.settle()
        with as_os_error():
            self._connection.flush()

    def finish(self) -> None:
        """Nothing to do: an export already has its name."""

    def close(self) -> None:
        self._connection.close()
        if self._claim is not None:
            self._claim.release()
            self._claim = None


@contextmanager
def as_os_error() -> Iterator[None]:
    """Turn errors into the OSError that a Target raises."""
    try:
        yield
    except CapacityError as error:
        raise OSError(errno.ENOSPC, error.message) from error
    except DeviceError as error:
        raise OSError(errno.EIO, error.message) from error
