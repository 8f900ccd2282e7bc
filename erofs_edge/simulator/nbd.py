# SPDX-License-Identifier: Apache-2.0
"""An NBD server over a simulated disk, as the far end of a connection without a network."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.connect import Address, Connection
from erofs_edge.transport.nbd.server import Offer, Request, Session
from erofs_edge.transport.nbd.wire import Command

if TYPE_CHECKING:
    import socket

EXPORT = "disk"


class NbdWire:
    """What a client takes for its socket: what is sent is served at once, the answers wait to be received."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._session = Session({EXPORT: Offer(disk.size, read_only=False)})
        self._answers = bytearray()
        self._serve(b"")

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        self._serve(bytes(data))

    def recv_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._answers))
        buffer[:count] = self._answers[:count]
        del self._answers[:count]
        return count

    def gettimeout(self) -> float:
        return 0.0

    def close(self) -> None:
        """The client has gone."""

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
        disk, session = self._disk, self._session
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
    """A client of ours, connected to a server that exports the disk."""
    address = Address("nbd://simulated/disk", EXPORT, "simulated")
    return Connection(address, wire=cast("socket.socket", NbdWire(disk)))
