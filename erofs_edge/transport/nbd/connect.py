# SPDX-License-Identifier: Apache-2.0
"""An NBD export over a real connection: nbd://, nbds:// (TLS) and nbd+unix:// addresses.

Large ranges are split into pieces, several of which are in progress at a time. During negotiation, a peer that is
silent for TIMEOUT seconds is given up; afterwards, only if its machine is gone as well. As long as the machine is there
it may be busy, or waiting for a slow medium, and gets the time that this takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from erofs_edge.errors import DeviceError, ProtocolError, UsageError
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.client import Client, Export, Pending, Said, Stretch, Take
from erofs_edge.transport.nbd.link import SilenceError, Wire, dial
from erofs_edge.transport.nbd.wire import Command, Transmission

if TYPE_CHECKING:
    import ssl

TIMEOUT = 30.0  # seconds without a byte from or to the peer
FLUSH = 600.0
"""additional seconds for making writes durable: boards have hundreds of MB of memory, and worn cards write 1 MB a
second. A write may have to wait for that, too, if the memory is full"""
READS = 4
"""factor on TIMEOUT for a read: disks retry for a minute or two, and machines may be starved for as long"""
ZEROED = 1 << 20  # bytes per second: the least rate of zeroing
PIECE = 256 << 10  # bytes of a request: it stays in the cache of the processor that writes it to the medium
STRETCH = 1 << 20  # the same for requests that the kernel fills from a file: the only cost here is the request itself
WINDOW = 64  # requests in progress
STATUS_SPAN = 1 << 30  # bytes covered by one block status request
ZERO_SPAN = 1 << 30

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
Trust = Callable[[], "ssl.SSLContext"]


class Address(NamedTuple):
    """Where an export is: `socket` is a path; otherwise `host` and `port`.

    certificates  a folder with ca-cert.pem and, if the server requires them, client-cert.pem and client-key.pem; None
                  to trust what this machine trusts
    name          the name required in the server's certificate, the host's if empty
    """

    uri: str
    export: str
    host: str = ""
    port: int = wire.PORT
    socket: Path | None = None
    tls: bool = False
    certificates: Path | None = None
    name: str = ""


def parse_address(uri: str) -> Address:
    """Parse an address in the form of the NBD project's URI specification. Raises UsageError."""
    try:
        parts = urlsplit(uri)
        port = parts.port or wire.PORT
    except ValueError as error:
        raise UsageError(f"not an address: {error}", where=uri) from None
    if parts.scheme not in SCHEMES:
        raise UsageError(f"not an NBD address: {uri!r}", hint="nbd://HOST[:PORT]/EXPORT or nbds://…")
    tls, export = parts.scheme.startswith("nbds"), unquote(parts.path.removeprefix("/"))
    options = parse_qs(parts.query)
    folder = Path(options["tls-certificates"][0]) if "tls-certificates" in options else None
    name = options.get("tls-hostname", [""])[0]
    if folder and not tls:
        raise UsageError("certificates need TLS", where=uri, hint="use nbds://…")
    if parts.scheme.endswith("+unix"):
        names = options.get("socket")
        if not names:
            raise UsageError("no socket in the address", where=uri, hint="nbd+unix:///EXPORT?socket=PATH")
        return Address(
            uri, export, parts.hostname or "localhost", socket=Path(names[0]), tls=tls, certificates=folder, name=name
        )
    if not parts.hostname:
        raise UsageError("no host in the address", where=uri)
    return Address(uri, export, parts.hostname, port, tls=tls, certificates=folder, name=name)


class Connection:
    """An open export. Methods raise DeviceError if the connection or the server fails, CapacityError if the server ran
    out of space, ProtocolError if it violates the protocol."""

    def __init__(
        self,
        address: Address,
        *,
        trust: Trust | None = None,
        timeout: float = TIMEOUT,
        wire: Wire | None = None,
        piece: int = PIECE,
        describe: bool = False,
    ) -> None:
        """`wire`: an existing connection to the server; `piece`: maximum bytes of a request; `describe`: ask for the
        description of the export."""
        self.address = address
        self._piece = piece
        self._sent = self._received = 0
        self._cut = False
        self._trust, self._timeout = trust, timeout
        self._patience = timeout  # tolerated seconds of silence; the socket's timeout is as long or shorter
        self._running: deque[Pending] = deque()  # requests made but not waited for
        self._client = Client(address.export, tls=address.tls, describe=describe)
        try:
            self._wire = dial(address.socket or (address.host, address.port), timeout) if wire is None else wire
        except OSError as error:
            raise DeviceError(
                f"cannot connect: {error.strerror or error}",
                where=address.uri,
                hint="is the board's provisioning system, or the server, up and on that port?",
            ) from error
        try:
            while self._client.export is None:
                self._step()
        except BaseException:
            self._wire.close()
            raise
        self.export: Export = self._client.export

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self.export.size

    @property
    def piece(self) -> int:
        """Bytes of a request."""
        return min(self._piece, self.export.payload_max)

    @property
    def sent(self) -> int:
        """Bytes sent to the server."""
        return self._sent

    @property
    def received(self) -> int:
        """Bytes received from the server."""
        return self._received

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` from the export."""
        piece = self.piece
        self._run(
            (self._client.read(offset + at, target[at : at + piece]) for at in range(0, len(target), piece)),
            self._reading,
        )

    def deliver(self, offset: int, length: int, take: Take) -> None:
        """Pass a range of the export to `take`, in parts as they arrive: it is called with (offset, data), in any
        order, by one thread of each connection, and `data` is valid until it returns. If it raises, it is not called
        again, and the exception is raised here once everything in progress has arrived."""
        piece, end = self.piece, offset + length
        self.deliver_from(iter(range(offset, end, piece)), piece, end, take)

    def deliver_from(self, places: Iterator[int], piece: int, end: int, take: Take) -> None:
        """As `deliver`, for pieces that start at the offsets from `places`, until there are no more; several
        connections may draw from the same iterator."""
        failures: list[BaseException] = []

        def taken(offset: int, data: memoryview) -> None:
            if not failures:
                try:
                    take(offset, data)
                except BaseException as error:
                    failures.append(error)

        def requests() -> Iterator[Pending]:
            for at in places:
                if failures:
                    return
                yield self._client.read_to(at, min(piece, end - at), taken)

        self._run(requests(), self._reading)
        if failures:
            raise failures[0]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Returns once the server has taken everything; `flush` makes it durable."""
        self.write_all([(offset, data)])

    def write_file(self, offset: int, file: int, at: int, length: int) -> None:
        """As `write`, for bytes of an open file (its descriptor) that need not pass through this program. Raises
        SourceError if the file is too short; the connection is unusable then, because the server waits for the rest."""
        self._run(self._of_file(offset, file, at, length), FLUSH)

    def post_file(self, offset: int, file: int, at: int, length: int) -> None:
        """As `write_file`, but may return before the server has the bytes; errors are raised by a later call, at the
        latest by `settle`."""
        self._run(self._of_file(offset, file, at, length), FLUSH, wait=False)

    def settle(self) -> None:
        """Wait until the server has everything that was posted."""
        self._run(iter(()), FLUSH)

    def write_all(self, places: Iterable[tuple[int, bytes | memoryview]]) -> None:
        """As `write`, for many (offset, data) without waiting in between. They must not overlap."""
        piece = self.piece
        pieces = (
            self._client.write(offset + at, memoryview(data)[at : at + piece])
            for offset, data in places
            for at in range(0, len(data), piece)
        )
        self._run(pieces, FLUSH)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, as cheaply as the server can."""
        if not self.export.can(Transmission.SEND_WRITE_ZEROES):
            zeros = bytes(min(length, PIECE))
            for at in range(0, length, PIECE):
                self.write(offset + at, memoryview(zeros)[: length - at])
            return
        spans = (
            self._client.write_zeroes(offset + at, min(ZERO_SPAN, length - at)) for at in range(0, length, ZERO_SPAN)
        )
        self._run(spans, FLUSH + min(length, ZERO_SPAN) / ZEROED)

    def flush(self) -> None:
        """Make everything written durable (a server without flush writes through)."""
        self.settle()  # a flush only covers writes that were answered before it was sent
        if self.export.can(Transmission.SEND_FLUSH):
            self._run(iter([self._client.flush()]), FLUSH)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what may be other than zeros; the whole range if the server cannot tell."""
        end = offset + length
        if self.export.status is None:
            yield offset, end
            return
        while offset < end:
            pending = self._client.block_status(offset, min(STATUS_SPAN, end - offset))
            self._run(iter([pending]), self._reading)
            for size, flags in pending.extents:
                if not flags & wire.STATE_ZERO:
                    yield offset, min(end, offset + size)
                offset += size

    def close(self) -> None:
        """Disconnect politely, if possible."""
        try:
            if not self._cut:
                self._client.disconnect()
                self._send()
        except OSError:
            pass
        finally:
            self._wire.close()

    @property
    def _reading(self) -> float:
        return (READS - 1) * self._timeout

    def _of_file(self, offset: int, file: int, at: int, length: int) -> Iterator[Pending]:
        piece = min(max(self._piece, STRETCH), self.export.payload_max)
        for done in range(0, length, piece):
            yield self._client.write(offset + done, Stretch(file, at + done, min(piece, length - done)))

    def _run(self, requests: Iterator[Pending], longer: float, *, wait: bool = True) -> None:
        """Get all requests answered, WINDOW at a time; without `wait`, those in progress at the end are left to the
        next call. The first failure is raised once nothing is in progress. `longer`: additional seconds for an answer
        if the other machine is there."""
        running, finished = self._running, list[Pending]()
        self._patience = self._timeout + longer
        try:
            for pending in requests:
                running.append(pending)
                if len(running) >= WINDOW or pending.command is not Command.READ:  # many reads are sent in one call
                    self._try(self._send)
                if len(running) >= WINDOW:
                    while len(running) > WINDOW // 2:
                        self._wait(running.popleft(), finished)
            while running and (wait or finished):
                self._wait(running.popleft(), finished)
        except BaseException:
            running.clear()  # they will never be answered
            raise
        finally:
            self._patience = self._timeout
        for pending in finished:
            pending.check(self.address.uri)

    def _wait(self, pending: Pending, failed: list[Pending]) -> None:
        while not pending.done:
            self._step()
        if pending.error:
            failed.append(pending)

    def _step(self) -> None:
        """Send what is waiting, receive once."""
        if self._client.outbox:
            self._try(self._send)
        self._try(self._receive)
        if self._client.upgrade:
            self._client.upgrade = False
            self._try(self._encrypt)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ProtocolError as error:
            error.where = error.where or self.address.uri
            raise
        except TimeoutError as error:
            seconds = error.seconds if isinstance(error, SilenceError) else self._timeout
            raise DeviceError(
                f"no answer for {seconds:g} s", where=self.address.uri, hint="is the link alive?"
            ) from error
        except OSError as error:
            raise DeviceError(f"connection lost: {error.strerror or error}", where=self.address.uri) from error

    def _send(self) -> None:
        said: list[Said] = self._client.outbox[:]
        self._client.outbox.clear()
        if said:
            self._cut = True  # until everything has been sent: no request can follow half of one
            self._wire.send(said, self._patience)
            self._cut = False
            self._sent += sum(map(len, said))

    def _receive(self) -> None:
        count = self._waited(self._client.feed.buffer)
        if not count:
            raise DeviceError("the server closed the connection", where=self.address.uri)
        self._received += count
        self._client.feed.filled(count)

    def _waited(self, buffer: memoryview) -> int:
        """As the wire's `receive`, as long as patience lasts and the other machine is there."""
        silent = 0.0
        while True:
            try:
                return self._wire.receive(buffer)
            except TimeoutError:
                silent += self._timeout
                if silent >= self._patience or not self._wire.hears():
                    raise SilenceError(silent) from None

    def _encrypt(self) -> None:
        import ssl

        address = self.address
        try:
            context = self._trust() if self._trust else _context(address)
            self._wire.encrypt(context, address.name or address.host)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or error
            raise DeviceError(f"TLS failed: {why}", where=address.uri) from error


def _context(address: Address) -> ssl.SSLContext:
    """The TLS context: what the server must present, and what this client does. Raises UsageError if a file is missing
    or invalid.
    """
    import ssl

    folder = address.certificates
    if folder is None:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca-cert.pem"))
        if (folder / "client-cert.pem").exists():
            context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    except OSError as error:  # includes SSLError
        raise UsageError(f"cannot use the certificates: {error.strerror or error}", where=str(folder)) from error
    return context
