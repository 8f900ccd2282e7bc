# SPDX-License-Identifier: Apache-2.0
"""The client's side of one NBD connection, without a socket.

Data to send is gathered in `outbox`; received data goes through `feed`. Requests may be submitted before earlier ones
are answered, and answers may come in any order. No message from a server can make this allocate more memory than was
requested.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from struct import Struct

from erofs_edge.errors import CapacityError, DeviceError, DeviceRefusedError, ErofsEdgeError, ProtocolError
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.wire import (
    Chunk,
    Command,
    Handshake,
    Info,
    Option,
    OptionReply,
    Transmission,
)
from erofs_edge.transport.stream import Bytes, Feed, Machine, take

REPLIES_MAX = 64  # per option
DESCRIPTION_MAX = 1000  # bytes that are kept; a server may send 4096
WITH_TLS, WITHOUT_TLS = "nbds://, or provisions://, asks for TLS", "nbd://, or provision://, asks for no TLS"
STATUS_MAX = 4 + 8 * 65536  # bytes of a block status chunk
_DESCRIPTOR = Struct(">II")
_OFFSET = Struct(">Q")
_OFFSET_DATA = int(Chunk.OFFSET_DATA)
_HOLE = Struct(">QI")
_DATA = Struct(">IHHQIQ")  # magic, flags, type, cookie, length, offset: the complete head of a data chunk
EARLY = _DATA.size  # bytes
_LENGTH_OFFSET = Struct(">IQ")  # of a data chunk: its length, and the offset of its data
_COMMON = Struct(">IHHQ")  # the start of simple and structured replies: magic, error or (flags, type), cookie

_REFUSALS: dict[int, str] = {
    OptionReply.ERR_UNKNOWN: "the server has no such export",
    OptionReply.ERR_POLICY: "the server's policy forbids it",
    OptionReply.ERR_TLS_REQD: "the server wants TLS",
    OptionReply.ERR_SHUTDOWN: "the server is shutting down",
    OptionReply.ERR_BLOCK_SIZE_REQD: "the export needs block sizes that we do not ask for",
}


class Stretch:
    """Bytes of an open file to be sent unchanged. `file`: its descriptor; `at` and `length` in bytes."""

    __slots__ = ("at", "file", "length")

    def __init__(self, file: int, at: int, length: int) -> None:
        self.file, self.at, self.length = file, at, length

    def __len__(self) -> int:
        return self.length


Said = bytes | memoryview | Stretch
"""data for the server"""


Take = Callable[[int, memoryview], None]
"""take(offset, data): receives bytes of the export; `data` is valid until it returns"""


class Export:
    """What the server says of the export. Sizes in bytes; `status` is the id of base:allocation if it was granted.
    `description`: a line of text, '' if the server sends none; some send it without being asked."""

    __slots__ = ("block_min", "description", "flags", "payload_max", "preferred", "size", "status", "structured")

    def __init__(self, *, structured: bool, status: int | None) -> None:
        self.size = -1
        self.description = ""
        self.flags = Transmission(0)
        self.block_min, self.preferred = wire.BLOCK_MIN, wire.BLOCK_PREFERRED
        self.payload_max = wire.PAYLOAD_MAX
        self.structured, self.status = structured, status

    def can(self, flag: Transmission) -> bool:
        return bool(self.flags & flag)


class Pending:
    """A request in progress and, in the end, its result.

    target   where the data of a read goes: memory of `length` bytes, or a function that takes it in parts, in any order
    error    the specification's error number, 0 for success; `message` is the server's
    extents  (length in bytes, flags) from a block status request
    """

    __slots__ = ("_covered", "command", "cookie", "done", "error", "extents", "length", "message", "offset", "target")

    def __init__(
        self, cookie: int, command: Command, offset: int, length: int, target: memoryview | Take | None = None
    ) -> None:
        self.cookie, self.command, self.offset, self.length, self.target = cookie, command, offset, length, target
        self.error, self.message, self.done = 0, "", False
        self.extents: list[tuple[int, int]] = []
        self._covered: list[tuple[int, int]] = []

    def check(self, where: str) -> None:
        """Raises DeviceError, or CapacityError if space ran out, if the server reported a failure."""
        if self.error:
            name = wire.ERROR_NAMES.get(self.error, f"error {self.error}")
            detail = f": {self.message}" if self.message else ""
            kind = CapacityError if self.error == wire.ENOSPC else DeviceError
            raise kind(
                f"the server failed to {self.command.name.lower().replace('_', ' ')} "
                f"{self.length} bytes at {self.offset:#x} ({name}){detail}",
                where=where,
            )

    def cover(self, start: int, length: int) -> None:
        """Record that these bytes of the export arrive. Raises ProtocolError if they, or that many, were not
        requested.
        """
        if length <= 0 or start < self.offset or start + length > self.offset + self.length:
            raise ProtocolError(f"answer for {length} bytes at {start:#x}, which were not asked for")
        if self._covered and sum(end - begin for begin, end in self._covered) + length > self.length:
            raise ProtocolError(f"more data than asked for at {self.offset:#x}")
        self._covered.append((start, start + length))

    def is_complete(self) -> bool:
        """Whether the parts that arrived cover the request, each byte once."""
        at = self.offset
        for start, end in sorted(self._covered):
            if start != at:
                return False
            at = end
        return at == self.offset + self.length


class Client:
    """One connection to one export.

    `export` is None until negotiation is complete. `upgrade` is set when the connection must be switched to TLS before
    anything more is sent or received; the owner clears it.

    describe  ask for the description of the export
    """

    def __init__(self, name: str, *, tls: bool = False, describe: bool = False) -> None:
        self.outbox: list[Said] = []
        self.upgrade = False
        self.export: Export | None = None
        self._name = name
        self._tls = tls
        self._asked = [Info.BLOCK_SIZE, Info.DESCRIPTION] if describe else [Info.BLOCK_SIZE]
        self._closing = False
        self._pending: dict[int, Pending] = {}
        self._cookie = 0
        self._reads = 0  # number of reads in progress
        self._scratch = memoryview(b"")
        self._early = b""
        self.feed = Feed(self._converse())

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def read(self, offset: int, target: memoryview) -> Pending:
        """Request as many bytes as `target` holds, to be put there."""
        return self._submit(Command.READ, offset, len(target), target=target)

    def read_to(self, offset: int, length: int, take: Take) -> Pending:
        """Request bytes that `take` receives as they arrive, always in the same memory, which stays in the
        processor's cache.
        """
        return self._submit(Command.READ, offset, length, target=take)

    def write(self, offset: int, data: Said) -> Pending:
        """Request a write. `data` must not change before the answer."""
        return self._submit(Command.WRITE, offset, len(data), payload=data)

    def write_zeroes(self, offset: int, length: int) -> Pending:
        return self._submit(Command.WRITE_ZEROES, offset, length)

    def flush(self) -> Pending:
        return self._submit(Command.FLUSH, 0, 0)

    def block_status(self, offset: int, length: int) -> Pending:
        return self._submit(Command.BLOCK_STATUS, offset, length)

    def disconnect(self) -> None:
        """Send the last request; it has no answer."""
        self._closing = True
        self.outbox.append(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))

    def _submit(
        self,
        command: Command,
        offset: int,
        length: int,
        *,
        target: memoryview | Take | None = None,
        payload: Said | None = None,
    ) -> Pending:
        if self.export is None:
            raise ProtocolError("a request before the negotiation is over")
        self._cookie += 1
        self._reads += command is Command.READ
        pending = self._pending[self._cookie] = Pending(self._cookie, command, offset, length, target)
        self.outbox.append(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, offset, length))
        if payload is not None:
            self.outbox.append(payload)
        return pending

    def _converse(self) -> Machine:
        yield from self._greet()
        if self._tls:
            yield from self._start_tls()
        self.export = yield from self._negotiate()
        while not self._closing:
            yield from self._answer(self.export)

    def _greet(self) -> Machine:
        magic, option_magic, flags = wire.GREETING.unpack((yield from take(wire.GREETING.size)))
        if magic != wire.MAGIC or option_magic != wire.OPTION_MAGIC:
            raise ProtocolError("the peer is not an NBD server of the newstyle negotiation")
        if not flags & Handshake.FIXED_NEWSTYLE:
            raise ProtocolError("the server does not know the fixed newstyle negotiation")
        self._zeroes = not flags & Handshake.NO_ZEROES
        self.outbox.append(wire.CLIENT_FLAGS.pack(Handshake.FIXED_NEWSTYLE | flags & Handshake.NO_ZEROES))

    def _start_tls(self) -> Machine:
        self.outbox.append(wire.option(Option.STARTTLS))
        kind, data = yield from _option_reply(Option.STARTTLS)
        if kind != OptionReply.ACK:
            raise DeviceRefusedError(f"the server does not speak TLS{_said(data)}", hint=WITHOUT_TLS)
        self.upgrade = True

    def _negotiate(self) -> Generator[memoryview, None, Export]:
        self.outbox.append(wire.option(Option.STRUCTURED_REPLY))
        kind, _ = yield from _option_reply(Option.STRUCTURED_REPLY)
        structured = kind == OptionReply.ACK
        status = (yield from self._ask_allocation()) if structured else None
        request = wire.string(self._name) + b"".join(
            word.to_bytes(2, "big") for word in (len(self._asked), *self._asked)
        )
        self.outbox.append(wire.option(Option.GO, request))
        export = Export(structured=structured, status=status)
        for _ in range(REPLIES_MAX):
            kind, data = yield from _option_reply(Option.GO)
            if kind == OptionReply.ACK:
                break
            if kind == OptionReply.ERR_UNSUP:
                yield from self._export_name(export)
                break
            if kind != OptionReply.INFO:
                raise _refused(kind, data, self._name)
            _take_info(export, data)
        if export.size < 0 or not export.flags & Transmission.HAS_FLAGS:
            raise ProtocolError("the server did not say what the export is")
        return export

    def _ask_allocation(self) -> Generator[memoryview, None, int | None]:
        request = wire.string(self._name) + b"\0\0\0\1" + wire.string(wire.ALLOCATION)
        self.outbox.append(wire.option(Option.SET_META_CONTEXT, request))
        status = None
        for _ in range(REPLIES_MAX):
            kind, data = yield from _option_reply(Option.SET_META_CONTEXT)
            if kind != OptionReply.META_CONTEXT:
                return status if kind == OptionReply.ACK else None
            if data[4:] == wire.ALLOCATION.encode():
                status = int.from_bytes(data[:4], "big")
        raise ProtocolError("the server offers metadata without end")

    def _export_name(self, export: Export) -> Machine:
        """The fallback for servers that do not know GO: they refuse by closing the connection."""
        self.outbox.append(wire.option(Option.EXPORT_NAME, self._name.encode()))
        raw = yield from take(wire.EXPORT_NAME_REPLY.size + (124 if self._zeroes else 0))
        size, flags = wire.EXPORT_NAME_REPLY.unpack_from(raw)
        export.size, export.flags = size, Transmission(flags)

    def _answer(self, export: Export) -> Machine:
        if len(self._early) == EARLY:  # true for nearly all read data
            magic, flags, kind, cookie, length, start = _DATA.unpack(self._early)
            if magic == wire.STRUCTURED_MAGIC and kind == _OFFSET_DATA and export.structured:
                self._early = b""
                yield from self._part(self._find(cookie), flags, length, start)
                return
        magic, high, low, cookie = _COMMON.unpack((yield from self._next(_COMMON.size)))
        if magic == wire.STRUCTURED_MAGIC and export.structured:
            yield from self._structured(export, high, low, cookie)
        elif magic == wire.SIMPLE_MAGIC:
            yield from self._simple(export, high << 16 | low, cookie)
        else:
            raise ProtocolError(f"an answer starts with {magic:#010x}")

    def _simple(self, export: Export, error: int, cookie: int) -> Machine:
        pending = self._find(cookie)
        if pending.command is Command.BLOCK_STATUS and not error:
            raise ProtocolError("a simple answer to a block status request")
        if pending.target is not None and not error:
            if export.structured:
                raise ProtocolError("a simple answer to a read, after structured ones were agreed")
            yield from self._data(pending, pending.offset, pending.length, last=0)
        pending.error = error
        self._finish(pending)

    def _structured(self, export: Export, flags: int, kind: int, cookie: int) -> Machine:
        pending = self._find(cookie)
        if kind == _OFFSET_DATA:
            length, start = _LENGTH_OFFSET.unpack((yield from self._next(_LENGTH_OFFSET.size)))
            yield from self._part(pending, flags, length, start)
            return
        yield from self._without_data(pending, export, kind, int.from_bytes((yield from self._next(4)), "big"))
        if flags & wire.CHUNK_DONE:
            self._check_done(pending)
            self._finish(pending)

    def _part(self, pending: Pending, flags: int, length: int, start: int) -> Machine:
        """Handle a data chunk from `start` on, after its head."""
        size, last = length - _OFFSET.size, flags & wire.CHUNK_DONE
        if size <= 0 or pending.target is None:
            raise ProtocolError(f"a chunk of type {_OFFSET_DATA:#x} and {length} bytes for a {pending.command.name}")
        pending.cover(start, size)
        yield from self._data(pending, start, size, last=last)
        if last:
            self._check_done(pending)
            self._finish(pending)

    def _without_data(self, pending: Pending, export: Export, kind: int, length: int) -> Machine:
        if kind & wire.IS_ERROR:
            if not 6 <= length <= wire.NAME_MAX + 14:
                raise ProtocolError(f"an error of {length} bytes")
            _take_error(pending, kind, (yield from self._next(length)))
        elif kind == Chunk.OFFSET_HOLE and pending.target is not None and length == _HOLE.size:
            start, size = _HOLE.unpack((yield from self._next(_HOLE.size)))
            pending.cover(start, size)
            if isinstance(pending.target, memoryview):
                pending.target[start - pending.offset :][:size] = bytes(size)
            else:
                pending.target(start, memoryview(bytes(size)))
        elif kind == Chunk.BLOCK_STATUS and pending.command is Command.BLOCK_STATUS:
            if not 12 <= length <= STATUS_MAX or (length - 4) % _DESCRIPTOR.size:
                raise ProtocolError(f"a block status of {length} bytes")
            _take_status(pending, (yield from self._next(length)), export.status)
        elif kind != Chunk.NONE or length:
            raise ProtocolError(f"a chunk of type {kind:#x} and {length} bytes for a {pending.command.name}")

    def _data(self, pending: Pending, start: int, length: int, *, last: int) -> Machine:
        """Receive bytes of the export from `start` on, part of what was requested. None of them came early, because no
        more than the head of a data chunk ever does.

        After the last part, the next head is received into the same buffer if that much is sure to come: the answers to
        two reads have at least `EARLY` bytes.
        """
        target = pending.target
        if isinstance(target, memoryview):
            yield target[start - pending.offset :][:length]
        elif target is not None:
            early = EARLY if last and self._reads > 2 else 0
            if len(self._scratch) < length + early:
                self._scratch = memoryview(bytearray(pending.length + EARLY))
            yield self._scratch[: length + early]
            self._early = bytes(self._scratch[length : length + early])
            target(start, self._scratch[:length])

    def _next(self, count: int) -> Bytes:
        """As `take`, but uses what came early first."""
        early = self._early[:count]
        self._early = self._early[count:]
        if len(early) < count:
            early += yield from take(count - len(early))
        return early

    def _check_done(self, pending: Pending) -> None:
        if pending.error:
            return
        if pending.command is Command.READ and not pending.is_complete():
            raise ProtocolError(f"a read of {pending.length} bytes at {pending.offset:#x} ended with parts missing")
        if pending.command is Command.BLOCK_STATUS and not pending.extents:
            raise ProtocolError("a block status request ended without an answer")

    def _find(self, cookie: int) -> Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise ProtocolError(f"an answer to a request that was not made (cookie {cookie:#x})")
        return pending

    def _finish(self, pending: Pending) -> None:
        del self._pending[pending.cookie]
        pending.done = True
        self._reads -= pending.command is Command.READ


def _option_reply(expected: Option) -> Generator[memoryview, None, tuple[int, bytes]]:
    magic, number, kind, length = wire.OPTION_REPLY.unpack((yield from take(wire.OPTION_REPLY.size)))
    if magic != wire.OPTION_REPLY_MAGIC or number != expected:
        raise ProtocolError("the server answers another option than asked")
    if length > wire.OPTION_MAX:
        raise ProtocolError(f"an option reply of {length} bytes")
    return kind, (yield from take(length))


def _take_info(export: Export, data: bytes) -> None:
    kind = int.from_bytes(data[:2], "big")
    if kind == Info.EXPORT:
        if len(data) != wire.INFO_EXPORT.size:
            raise ProtocolError(f"information on the export in {len(data)} bytes")
        _, export.size, flags = wire.INFO_EXPORT.unpack(data)
        export.flags = Transmission(flags)
    elif kind == Info.BLOCK_SIZE:
        if len(data) != wire.INFO_BLOCK_SIZE.size:
            raise ProtocolError(f"block sizes in {len(data)} bytes")
        _, export.block_min, export.preferred, export.payload_max = wire.INFO_BLOCK_SIZE.unpack(data)
        minimum, preferred = export.block_min, export.preferred
        powers = all(size and not size & (size - 1) for size in (minimum, preferred))
        if not powers or minimum > 65536 or not minimum <= preferred <= export.payload_max:
            raise ProtocolError(f"block sizes {minimum}, {preferred}, {export.payload_max}")
        export.payload_max = min(export.payload_max, wire.PAYLOAD_MAX)
    elif kind == Info.DESCRIPTION:
        text = data[2 : 2 + DESCRIPTION_MAX].decode("utf-8", "replace")
        export.description = "".join(c for c in text if c.isprintable())


def _take_error(pending: Pending, kind: int, raw: bytes) -> None:
    size = int.from_bytes(raw[4:6], "big")
    if 6 + size + (8 if kind == Chunk.ERROR_OFFSET else 0) > len(raw):
        raise ProtocolError("an error message that is longer than its chunk")
    pending.error = int.from_bytes(raw[:4], "big") or wire.EIO
    pending.message = raw[6 : 6 + size].decode("utf-8", "replace")


def _take_status(pending: Pending, raw: bytes, context: int | None) -> None:
    if int.from_bytes(raw[:4], "big") != context:
        raise ProtocolError("the block status of something that was not asked for")
    covered = sum(size for size, _ in pending.extents)
    for size, flags in _DESCRIPTOR.iter_unpack(raw[4:]):
        if not size or covered >= pending.length:
            raise ProtocolError("a block status that is longer than the request")
        pending.extents.append((size, flags))
        covered += size


def _refused(kind: int, data: bytes, name: str) -> ErofsEdgeError:
    reason = _REFUSALS.get(kind, f"the server refuses (reply {kind:#x})")
    hint = WITH_TLS if kind == OptionReply.ERR_TLS_REQD else None
    error = DeviceError if kind == OptionReply.ERR_UNKNOWN else DeviceRefusedError
    return error(f"{reason}{_said(data)}", where=f"export {name!r}", hint=hint)


def _said(data: bytes) -> str:
    return f": {data.decode('utf-8', 'replace')}" if data else ""
