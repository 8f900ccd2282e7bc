# SPDX-License-Identifier: Apache-2.0
"""An NBD server for many clients, with a thread per client, so that a slow or silent one delays nobody else.

A client costs a thread and one request's memory. Data goes from the page cache to the socket without being copied here,
except under TLS. A client that does not take what it requested is dropped after STALL seconds.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from erofs_edge.errors import DeviceError, ErofsEdgeError, ProtocolError
from erofs_edge.serve.export import Export
from erofs_edge.serve.writers import Writers, host_of
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.server import Offer, Request, Session
from erofs_edge.transport.nbd.wire import Command, CommandFlag

CLIENTS_MAX = 1000
NEGOTIATION = 30  # seconds until an export must be chosen
STALL = 120  # seconds for which a client may not take what it requested
BACKLOG = 128
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""seconds, seconds and probes (tcp(7)): a host that died silently is dropped after a minute"""
CHANGES = (Command.WRITE, Command.WRITE_ZEROES, Command.TRIM)

Say = Callable[[str], None]
Context = ssl.SSLContext


def mutual_tls(certificate: Path, key: Path, authority: Path) -> Context:
    """The context of a server that presents a certificate and requires one from this authority (PEM files). Raises
    OSError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Server:
    """Serves `exports` on its sockets until it is stopped. A writable export is written by one host at a time: for any
    other it is read-only, and its description says who writes it.

    tls  the context with our certificate; with it, unencrypted clients are refused
    say  called with single lines of interest to an operator
    """

    def __init__(
        self, exports: Mapping[str, Export], *, tls: ssl.SSLContext | None = None, say: Say = lambda _: None
    ) -> None:
        self._exports = exports
        self.writers = Writers()
        self._tls = tls
        self._say = say
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def listen(self, host: str, port: int) -> int:
        """Accept TCP connections from now on; return the port (chosen by the system for 0). Raises DeviceError."""
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            hint = "choose another port with --port, or 0 for a free one" if error.errno == errno.EADDRINUSE else None
            where = f"{host}:{port}"
            raise DeviceError(f"cannot listen: {error.strerror or error}", where=where, hint=hint) from error
        self._accept_from(listener)
        chosen: int = listener.getsockname()[1]
        return chosen

    def listen_unix(self, path: Path) -> None:
        """Accept connections on a socket file; one left by a killed server is replaced. Raises DeviceError."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            if _left_behind(path):
                path.unlink()
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            hint = "another server listens there, or a file has this name" if error.errno == errno.EADDRINUSE else None
            raise DeviceError(f"cannot listen: {error.strerror or error}", where=str(path), hint=hint) from error
        self._accept_from(listener)

    def stop(self) -> None:
        """Close everything; returns once no client is left."""
        with self._lock:
            self._stopping = True
            sockets = [*self._listeners, *self._clients]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for listener in self._listeners:
            listener.close()
        while True:
            with self._lock:
                if not self._clients:
                    return
            time.sleep(0.01)

    def _accept_from(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        thread = threading.Thread(target=self._accept, args=(listener,), name="nbd-accept", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    time.sleep(0.1)
                    continue
                return
            with self._lock:
                welcome = not self._stopping and len(self._clients) < CLIENTS_MAX
                if welcome:
                    self._clients.add(client)
            if not welcome:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="nbd-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        peer, host = _peer(client), _host(client)
        offers = _Offers(self._exports, self.writers, host, self._say)
        served = _Client(client, Session(offers, tls=self._tls is not None), self, host)
        try:
            served.run()
        except ProtocolError as error:
            self._say(f"{peer}: {error.message}; disconnected")
        except (TimeoutError, BlockingIOError):  # SO_SNDTIMEO raises the latter
            self._say(f"{peer}: silent for too long; disconnected")
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.EBADF, errno.ENOTCONN):
                self._say(f"{peer}: {error.strerror or error}")
        finally:
            with self._lock:
                self._clients.discard(served.socket)
            served.socket.close()
            served.leave()

    def export(self, name: str) -> Export:
        return self._exports[name]

    def encrypt(self, client: socket.socket) -> ssl.SSLSocket:
        assert self._tls is not None  # noqa: S101 - sessions upgrade only where there is a context
        encrypted = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=True)
        with self._lock:  # the old socket is an empty shell now: `stop` must find the new one
            self._clients.discard(client)
            self._clients.add(encrypted)
        return encrypted


class _Offers(Mapping[str, Offer]):
    """The exports offered to one host, some of which are only created on request. One that cannot be opened does not
    exist for the client; the operator is told why."""

    def __init__(self, exports: Mapping[str, Export], writers: Writers, host: str, say: Say) -> None:
        self._exports, self._writers, self._host, self._say = exports, writers, host, say

    def __getitem__(self, name: str) -> Offer:
        try:
            export = self._exports[name]
        except ErofsEdgeError as error:
            self._say(f"export {name}: {error}" + (f" ({error.hint})" if error.hint else ""))
            raise KeyError(name) from error
        offer = export.offer
        other = "" if offer.read_only else self._writers.other(export.path, self._host)
        return replace(offer, read_only=True, writer=other) if other else offer

    def __iter__(self) -> Iterator[str]:
        return iter(self._exports)

    def __len__(self) -> int:
        return len(self._exports)


class _Client:
    """One connection: moves bytes between its socket and its session."""

    def __init__(self, client: socket.socket, session: Session, server: Server, host: str) -> None:
        self.socket = client
        self._host = host
        self._entered: Path | None = None
        self._session = session
        self._server = server
        self._encrypted = False

    def run(self) -> None:
        _prepare(self.socket)
        session, feed = self._session, self._session.feed
        self.socket.settimeout(NEGOTIATION)
        export: Export | None = None
        while True:
            for data in session.outbox:
                self.socket.sendall(data)
            session.outbox.clear()
            if session.upgrade:
                session.upgrade = False
                self.socket = self._server.encrypt(self.socket)
                self._encrypted = True
            if feed.done:
                return
            count = self.socket.recv_into(feed.buffer)
            if not count:
                return
            feed.filled(count)
            if export is None and session.name is not None:
                # idle clients are allowed from here on, but not those that stop reading: SO_SNDTIMEO
                self.socket.settimeout(None)
                export = self._server.export(session.name)
                self._entered = export.path
                self._server.writers.enter(export.path, self._host)
            if session.request is not None and export is not None:
                request, session.request = session.request, None
                self._answer(request, export)

    def leave(self) -> None:
        """The connection has ended."""
        if self._entered is not None:
            self._server.writers.leave(self._entered, self._host)

    def _answer(self, request: Request, export: Export) -> None:
        session = self._session
        if request.command is Command.READ:
            export.activity.note(request.offset, request.length)
            header = session.data_header(request)
            if export.direct and not self._encrypted:
                export.send(self.socket, header, request.offset, request.length)
                return
            try:
                data = export.read(request.offset, request.length)
            except OSError as error:
                session.outbox.append(_failed(session, request, error))
                return
            self.socket.sendall(header)
            self.socket.sendall(data)
            return
        if request.command is Command.BLOCK_STATUS:
            session.outbox.append(session.status(request, export.extents(request.offset, request.length)))
            return
        try:
            if request.command in CHANGES and (other := self._server.writers.writes(export.path, self._host)):
                raise OSError(errno.EPERM, f"{other} writes it")
            _change(request, export)
        except OSError as error:
            session.outbox.append(_failed(session, request, error))
        else:
            session.outbox.append(session.done(request))


def _change(request: Request, export: Export) -> None:
    if request.command is Command.WRITE:
        export.write(request.offset, request.data or b"")
    elif request.command is Command.WRITE_ZEROES:
        export.zero(request.offset, request.length)
    elif request.command is Command.FLUSH and not export.offer.read_only:
        export.flush()
    if request.flags & CommandFlag.FUA:
        export.flush()


def _failed(session: Session, request: Request, error: OSError) -> bytes:
    number = wire.ERRORS.get(error.errno or errno.EIO, wire.EIO)
    return session.done(request, number, error.strerror or "")


def _prepare(client: socket.socket) -> None:
    stall = struct.pack("ll", STALL, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not on every system
                client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _left_behind(path: Path) -> bool:
    """Whether this is a socket file on which nobody listens."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _host(client: socket.socket) -> str:
    try:
        return host_of(client)
    except OSError:
        return ""  # it is gone and requests nothing


def _peer(client: socket.socket) -> str:
    try:
        name = client.getpeername()
    except OSError:
        return "a client"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a local client"
