# SPDX-License-Identifier: Apache-2.0
"""A client and a server session joined in memory: what either says reaches the other in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from erofs_edge.transport.nbd.client import Client
from erofs_edge.transport.nbd.server import Offer, Request, Session
from erofs_edge.transport.nbd.wire import Command


class MemoryServer:
    """Serves bytearrays through a Session."""

    def __init__(self, exports: Mapping[str, bytearray]) -> None:
        self.exports = exports
        self.session = Session({name: Offer(len(data), read_only=False) for name, data in exports.items()})

    def answer(self) -> bytes:
        """What the session has to say now."""
        session = self.session
        said = b"".join(session.outbox)
        session.outbox.clear()
        if session.request is not None:
            request, session.request = session.request, None
            said += self._carry_out(request, self.exports[session.name or ""])
        return said

    def _carry_out(self, request: Request, data: bytearray) -> bytes:
        start, end = request.offset, request.offset + request.length
        if request.command is Command.READ:
            return self.session.data_header(request) + bytes(data[start:end])
        if request.command is Command.BLOCK_STATUS:
            return self.session.status(request, [(request.length, 0)])
        if request.command is Command.WRITE:
            data[start:end] = request.data or b""
        elif request.command is Command.WRITE_ZEROES:
            data[start:end] = bytes(request.length)
        return self.session.done(request)


def converse(client: Client, server: MemoryServer, sizes: Iterator[int]) -> None:
    """Until both are silent. `sizes`: how many bytes arrive at once."""
    heard = server.answer()
    while heard or client.outbox:
        while heard and not client.feed.done:
            count = min(next(sizes), len(heard), len(client.feed.buffer))
            client.feed.feed(heard[:count])
            heard = heard[count:]
        heard = b""
        said = b"".join(map(bytes, client.outbox))
        client.outbox.clear()
        while said and not server.session.feed.done:
            count = min(next(sizes), len(said), len(server.session.feed.buffer))
            server.session.feed.feed(said[:count])
            said = said[count:]
            heard += server.answer()


def opened(exports: Mapping[str, bytearray], name: str, sizes: Iterator[int]) -> tuple[Client, MemoryServer]:
    """A pair that has negotiated."""
    client, server = Client(name), MemoryServer(exports)
    converse(client, server, sizes)
    return client, server
