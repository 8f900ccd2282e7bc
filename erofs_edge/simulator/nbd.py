# SPDX-License-Identifier: Apache-2.0
"""An NBD server over a simulated disk, as the far end of a connection without a network."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.client import Said, Stretch
from erofs_edge.transport.nbd.connect import Address, Connection
from erofs_edge.transport.nbd.server import Offer, Request, Session
from erofs_edge.transport.nbd.wire import Command

if TYPE_CHECKING:
    import ssl

EXPORT = "disk"


class NbdWire:
    """A client's wire: what is sent is served at once, and the answers wait to be received."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self._session = Session({EXPORT: Offer(disk.size, read_only=False)})
        self._answers = bytearray()
        self._serve(b"")

    def send(self, chunks: Sequence[Said], patience: float = 0.0) -> None:
        for chunk in chunks:
            self._serve(os.pread(chunk.file, chunk.length, chunk.at) if isinstance(chunk, Stretch) else bytes(chunk))

    def receive(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._answers))
        buffer[:count] = self._answers[:count]
        del self._answers[:count]
        return count

    def hears(self) -> bool:
        return True

    def encrypt(self, context: ssl.SSLContext, name: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "the simulated server has no TLS")

    def close(self) -> None:
        """The client has disconnected."""

    def _serve(self, said: bytes) -> None:
        feed = self._session.feed
        self._collect()
        while said and not feed.done:
            count = min(len(said), len(feed.buffer))
            feed.feed(said[:count])
            said = said[count:]
            self._collect()

    def _collect(self) -> None:
        session = self._session
        self._answers += b"".join(session.outbox)
        session.outbox.clear()
        if session.request is not None:
            request, session.request = session.request, None
            self._answers += self._carry_out(request)

    def _carry_out(self, request: Request) -> bytes:
        disk, session = self.disk, self._session
        try:
            if request.command is Command.READ:
                data = disk.read(request.offset, request.length)
                return session.data_header(request) + data
            if request.command is Command.BLOCK_STATUS:
                return session.status(request, [(request.length, 0)])
            if request.command is Command.WRITE:
                disk.write(request.offset, request.data or b"")
            elif request.command is Command.WRITE_ZEROES:
                disk.write(request.offset, bytes(request.length))
            elif request.command is Command.FLUSH:
                disk.flush()
        except OSError as error:
            return session.done(request, wire.ENOSPC if error.errno == errno.ENOSPC else wire.EIO, str(error))
        return session.done(request)


def connect(disk: SimulatedDisk) -> Connection:
    """Our client, connected to a server that exports the disk."""
    address = Address("nbd://simulated/disk", EXPORT, "simulated")
    return Connection(address, wire=NbdWire(disk))
