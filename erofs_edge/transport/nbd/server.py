# SPDX-License-Identifier: Apache-2.0
"""The server's side of one NBD connection, without a socket.

Data to send is gathered in `outbox`; received data goes through `feed`. The owner carries out each `request` and
answers with `data_header` and the bytes, or with `done`. A client can make this allocate no more memory than one
request needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from struct import Struct

from erofs_edge.errors import ProtocolError
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.wire import (
    Chunk,
    Command,
    CommandFlag,
    Handshake,
    Info,
    Option,
    OptionReply,
    Transmission,
)
from erofs_edge.transport.stream import Feed, Machine, take

OPTIONS_MAX = 256  # per negotiation: more than any sensible client sends
STATUS_ID = 1
_QUERIES = (wire.ALLOCATION, "base:", "")
# created once: doing so for each request would double its cost
_COMMANDS = {int(command): command for command in Command}
_FLAGS = tuple(CommandFlag(number) for number in range(16))


@dataclass(frozen=True, slots=True)
class Offer:
    """An export offered under a name. Sizes in bytes. `writer`: the current writer, if others must not write."""

    size: int
    read_only: bool = True
    description: str = ""
    writer: str = ""
    block_min: int = wire.BLOCK_MIN
    preferred: int = wire.BLOCK_PREFERRED

    @property
    def said(self) -> str:
        """The description for people."""
        return f"{self.writer} writes it" if self.writer else self.description

    @property
    def flags(self) -> Transmission:
        flags = Transmission.HAS_FLAGS | Transmission.CAN_MULTI_CONN | Transmission.SEND_DF | Transmission.SEND_FLUSH
        if self.read_only:
            return flags | Transmission.READ_ONLY
        return flags | Transmission.SEND_FUA | Transmission.SEND_TRIM | Transmission.SEND_WRITE_ZEROES


@dataclass(slots=True)
class Request:
    """A valid request: in range, and allowed. `data` is the data of a write."""

    command: Command
    flags: CommandFlag
    cookie: int
    offset: int
    length: int
    data: bytearray | None = None


class Session:
    """One connection. `offers` are all exports by name; with `tls` they are offered over TLS only.

    `name` is the chosen export, None before that. `request` must be answered and set to None before anything more is
    received. `upgrade` is set when the connection must be switched to TLS, after the outbox has been sent; the owner
    clears it. When `feed` is done, the connection must be closed.
    """

    def __init__(self, offers: Mapping[str, Offer], *, tls: bool = False) -> None:
        self.outbox: list[bytes] = []
        self.upgrade = False
        self.name: str | None = None
        self.request: Request | None = None
        self._offers = offers
        self._tls = tls
        self._encrypted = False
        self._structured = False
        self._status: str | None = None  # the export for which base:allocation was negotiated
        self.feed = Feed(self._converse())

    @property
    def offer(self) -> Offer:
        if self.name is None:
            raise ValueError("no export was chosen yet")
        return self._offers[self.name]

    def data_header(self, request: Request) -> bytes:
        """The header before the `request.length` bytes of a read."""
        if not self._structured:
            return wire.SIMPLE.pack(wire.SIMPLE_MAGIC, 0, request.cookie)
        length = request.length + 8
        head = wire.STRUCTURED.pack(wire.STRUCTURED_MAGIC, wire.CHUNK_DONE, Chunk.OFFSET_DATA, request.cookie, length)
        return head + request.offset.to_bytes(8, "big")

    def done(self, request: Request, error: int = 0, message: str = "") -> bytes:
        """The answer without data; `error` is one of the specification's numbers."""
        if not self._structured:
            return wire.SIMPLE.pack(wire.SIMPLE_MAGIC, error, request.cookie)
        payload, kind = b"", Chunk.NONE
        if error:
            text = message.encode()[: wire.NAME_MAX]
            payload, kind = error.to_bytes(4, "big") + len(text).to_bytes(2, "big") + text, Chunk.ERROR
        head = wire.STRUCTURED.pack(wire.STRUCTURED_MAGIC, wire.CHUNK_DONE, kind, request.cookie, len(payload))
        return head + payload

    def status(self, request: Request, extents: list[tuple[int, int]]) -> bytes:
        """The answer to a block status request: (length in bytes, flags of base:allocation) from its offset on."""
        if request.flags & CommandFlag.REQ_ONE:
            extents = extents[:1]
        payload = STATUS_ID.to_bytes(4, "big") + b"".join(Struct(">II").pack(*extent) for extent in extents)
        head = wire.STRUCTURED.pack(
            wire.STRUCTURED_MAGIC, wire.CHUNK_DONE, Chunk.BLOCK_STATUS, request.cookie, len(payload)
        )
        return head + payload

    def _converse(self) -> Machine:
        flags = Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES
        self.outbox.append(wire.GREETING.pack(wire.MAGIC, wire.OPTION_MAGIC, flags))
        (answer,) = wire.CLIENT_FLAGS.unpack((yield from take(wire.CLIENT_FLAGS.size)))
        if answer & ~int(flags) or not answer & Handshake.FIXED_NEWSTYLE:
            raise ProtocolError(f"a client with handshake flags {answer:#x}")
        zeroes = not answer & Handshake.NO_ZEROES
        for _ in range(OPTIONS_MAX):
            if (yield from self._option(zeroes=zeroes)):
                return
            if self.name is not None:
                break
        else:
            raise ProtocolError(f"a negotiation of more than {OPTIONS_MAX} options")
        while (yield from self._request()):
            pass

    def _option(self, *, zeroes: bool) -> Generator[memoryview, None, bool]:
        """Receive and answer one option; return whether the client leaves."""
        magic, number, length = wire.OPTION.unpack((yield from take(wire.OPTION.size)))
        if magic != wire.OPTION_MAGIC:
            raise ProtocolError(f"an option starts with {magic:#018x}")
        if length > wire.OPTION_MAX:
            raise ProtocolError(f"an option of {length} bytes")
        data = yield from take(length)
        if number == Option.ABORT:
            self._reply(number, OptionReply.ACK)
            return True
        if self._tls and not self._encrypted and number != Option.STARTTLS:
            if number == Option.EXPORT_NAME:
                return True
            self._reply(number, OptionReply.ERR_TLS_REQD)
        elif number == Option.EXPORT_NAME:
            return not self._export_name(data, zeroes=zeroes)
        else:
            answer = self._answers().get(number)
            if answer is None:
                self._reply(number, OptionReply.ERR_UNSUP)
            else:
                answer(number, data)
        return False

    def _answers(self) -> dict[int, Callable[[int, bytes], None]]:
        return {
            Option.LIST: self._list,
            Option.STARTTLS: self._start_tls,
            Option.INFO: self._go,
            Option.GO: self._go,
            Option.STRUCTURED_REPLY: self._agree_structured,
            Option.LIST_META_CONTEXT: self._contexts,
            Option.SET_META_CONTEXT: self._contexts,
        }

    def _reply(self, number: int, kind: OptionReply, data: bytes = b"") -> None:
        self.outbox.append(wire.option_reply(number, kind, data))

    def _export_name(self, data: bytes, *, zeroes: bool) -> bool:
        name = data.decode("utf-8", "replace")
        if name not in self._offers:
            return False
        self.name = name
        offer = self.offer
        self.outbox.append(wire.EXPORT_NAME_REPLY.pack(offer.size, offer.flags) + bytes(124 if zeroes else 0))
        return True

    def _list(self, number: int, data: bytes) -> None:
        if data:
            self._reply(number, OptionReply.ERR_INVALID)
            return
        for name in sorted(self._offers):
            self._reply(number, OptionReply.SERVER, wire.string(name))
        self._reply(number, OptionReply.ACK)

    def _start_tls(self, number: int, data: bytes) -> None:
        if data or self._encrypted:
            self._reply(number, OptionReply.ERR_INVALID)
        elif not self._tls:
            self._reply(number, OptionReply.ERR_POLICY)
        else:
            self._reply(number, OptionReply.ACK)
            # what was negotiated unencrypted may be forged
            self._structured, self._status = False, None
            self._encrypted = self.upgrade = True

    def _agree_structured(self, number: int, data: bytes) -> None:
        if data:
            self._reply(number, OptionReply.ERR_INVALID)
            return
        self._structured = True
        self._reply(number, OptionReply.ACK)

    def _go(self, number: int, data: bytes) -> None:
        size = int.from_bytes(data[:4], "big")
        count = int.from_bytes(data[4 + size : 6 + size], "big")
        if len(data) < 6 or len(data) != 6 + size + 2 * count:
            self._reply(number, OptionReply.ERR_INVALID)
            return
        name = data[4 : 4 + size].decode("utf-8", "replace")
        offer = self._offers.get(name)
        if offer is None:
            self._reply(number, OptionReply.ERR_UNKNOWN, f"no export {name!r}".encode())
            return
        export = wire.INFO_EXPORT.pack(Info.EXPORT, offer.size, offer.flags)
        sizes = wire.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, offer.block_min, offer.preferred, wire.PAYLOAD_MAX)
        for info in (export, sizes):
            self._reply(number, OptionReply.INFO, info)
        if offer.said:
            described = Info.DESCRIPTION.to_bytes(2, "big") + offer.said.encode()
            self._reply(number, OptionReply.INFO, described)
        self._reply(number, OptionReply.ACK)
        if number == Option.GO:
            self.name = name

    def _contexts(self, number: int, data: bytes) -> None:
        name, queries = _parse_contexts(data)
        if queries is None or (number == Option.SET_META_CONTEXT and not self._structured):
            self._reply(number, OptionReply.ERR_INVALID)
            return
        if name not in self._offers:
            self._reply(number, OptionReply.ERR_UNKNOWN)
            return
        exact = number == Option.SET_META_CONTEXT
        if (wire.ALLOCATION in queries) if exact else (not queries or any(query in _QUERIES for query in queries)):
            context = (STATUS_ID if exact else 0).to_bytes(4, "big") + wire.ALLOCATION.encode()
            self._reply(number, OptionReply.META_CONTEXT, context)
            self._status = name if exact else self._status
        elif exact:
            self._status = None
        self._reply(number, OptionReply.ACK)

    def _request(self) -> Generator[memoryview, None, bool]:
        """Receive one request; False if the client leaves."""
        raw = yield from take(wire.REQUEST.size)
        magic, flags, number, cookie, offset, length = wire.REQUEST.unpack(raw)
        if magic != wire.REQUEST_MAGIC:
            raise ProtocolError(f"a request starts with {magic:#010x}")
        if number == Command.DISC:
            return False
        data = None
        if number == Command.WRITE:
            if length > wire.PAYLOAD_MAX:
                raise ProtocolError(f"a write of {length} bytes")
            data = bytearray(length)
            if length:
                yield memoryview(data)
        command = _COMMANDS.get(number)
        request = Request(
            Command.CACHE if command is None else command, _FLAGS[flags & 15], cookie, offset, length, data
        )
        error = wire.EINVAL if command is None else self._objection(request)
        if error:
            why = self.offer.said if error == wire.EPERM and self.offer.writer else ""
            self.outbox.append(self.done(request, error, why))
        else:
            self.request = request
        return True

    def _objection(self, request: Request) -> int:
        """What is wrong with a request, as an error number."""
        offer, command = self.offer, request.command
        if command is Command.READ and 0 < request.length <= wire.PAYLOAD_MAX and offer.block_min == 1:
            return wire.EINVAL if request.offset + request.length > offer.size else 0  # true for nearly all requests
        if command is Command.FLUSH:
            return wire.EINVAL if request.offset or request.length else 0
        writes = command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
        beyond = request.offset + request.length > offer.size
        unaligned = (request.offset | request.length) % offer.block_min
        objections = (
            (command is Command.CACHE, wire.EINVAL),
            (command is Command.BLOCK_STATUS and self._status != self.name, wire.EINVAL),
            (writes and offer.read_only, wire.EPERM),
            (not request.length or unaligned, wire.EINVAL),
            (beyond, wire.ENOSPC if writes and command is not Command.TRIM else wire.EINVAL),
            (command is Command.READ and request.length > wire.PAYLOAD_MAX, wire.EOVERFLOW),
        )
        return next((error for wrong, error in objections if wrong), 0)


def _parse_contexts(data: bytes) -> tuple[str, list[str] | None]:
    """The export's name and the queries; None for the queries if the option is malformed."""

    def counted(at: int) -> tuple[bytes, int]:
        size = int.from_bytes(data[at : at + 4], "big")
        if len(data) < at + 4 + size:
            raise ValueError
        return data[at + 4 : at + 4 + size], at + 4 + size

    try:
        name, at = counted(0)
        count = int.from_bytes(data[at : at + 4], "big")
        at += 4
        queries = []
        for _ in range(min(count, len(data))):
            query, at = counted(at)
            queries.append(query.decode("utf-8", "replace"))
    except ValueError:
        return "", None
    return name.decode("utf-8", "replace"), queries if at == len(data) and count == len(queries) else None
