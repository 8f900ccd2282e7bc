# SPDX-License-Identifier: Apache-2.0
"""The host's side of the fastboot protocol, without any I/O.

Each command is a generator. It yields a message to send, None to wait for a message, or the number of bytes still to
come to wait for data; whatever arrives is sent into it. A link (`link.py`) drives it. Messages are the device's
packets: nothing here waits or keeps time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from erofs_edge.errors import DeviceError, DeviceRefusedError, ProtocolError, UsageError

COMMAND_MAX = 4096  # bytes; 64 in the first version and in devices that report no limit
RESPONSE_MAX = 256  # bytes
LINES_MAX = 10_000  # INFO and TEXT messages per command
DOWNLOAD_MAX = 0xFFFFFFFF

Step = bytes | memoryview | int | None
Exchange = Generator[Step, bytes, "Outcome"]
Say = Callable[[str], None]


class Status(StrEnum):
    """How a response begins."""

    OKAY = "OKAY"
    FAIL = "FAIL"
    DATA = "DATA"
    INFO = "INFO"
    TEXT = "TEXT"


@dataclass(slots=True)
class Outcome:
    """The result of a command: the device's final message, the lines before it, and the bytes that it sent."""

    value: str = ""
    lines: list[str] = field(default_factory=list)
    data: bytes = b""


def command(text: str, say: Say | None = None) -> Exchange:
    """Send a command and wait until the device has finished.

    Raises DeviceRefusedError with the device's reason if it answers FAIL, ProtocolError if it violates the protocol.
    """
    outcome = Outcome()
    yield _encoded(text)
    status, rest = yield from _final(outcome, text, say)
    if status is Status.DATA:
        raise ProtocolError(f"the device asks for data after {text!r}")
    outcome.value = rest
    return outcome


def download(size: int, parts: Iterable[bytes | memoryview], say: Say | None = None) -> Exchange:
    """Put `size` bytes into the device's memory."""
    if not 0 < size <= DOWNLOAD_MAX:
        raise UsageError(f"{size} bytes cannot be sent at once")
    text = f"download:{size:08x}"
    outcome = Outcome()
    yield text.encode()
    status, rest = yield from _final(outcome, text, say)
    if status is not Status.DATA:
        raise ProtocolError("the device does not ask for data after a download command")
    if _length(rest) != size:
        raise DeviceRefusedError(f"the device takes {_length(rest)} bytes where {size} were offered")
    sent = 0
    for part in parts:
        sent += len(part)
        if sent > size:
            raise ValueError(f"more than the {size} bytes that were announced")
        if len(part):
            yield part
    if sent != size:
        raise ValueError(f"{sent} bytes where {size} were announced")
    status, outcome.value = yield from _final(outcome, text, say)
    if status is not Status.OKAY:
        raise ProtocolError("the device asks for more data than it was offered")
    return outcome


def announced(message: bytes | memoryview) -> int:
    """The number of bytes that a message announces for a download; 0 for any other message."""
    if len(message) != len("download:") + 8 or bytes(message[:9]) != b"download:":
        return 0
    try:
        return int(bytes(message[9:]), 16)
    except ValueError:
        return 0  # data that happens to begin like this


def upload(text: str, limit: int, say: Say | None = None) -> Exchange:
    """A command that makes the device send at most `limit` bytes (`upload`, `fetch:…`)."""
    outcome = Outcome()
    yield _encoded(text)
    status, rest = yield from _final(outcome, text, say)
    if status is not Status.DATA:
        raise ProtocolError(f"the device sends no data for {text!r}")
    size = _length(rest)
    if size > limit:
        raise ProtocolError(f"the device wants to send {size} bytes, more than {limit}")
    buffer = bytearray()
    while len(buffer) < size:
        part = yield size - len(buffer)
        if not part:
            raise ProtocolError("the device sent an empty packet in its data")
        buffer += part
    if len(buffer) > size:
        raise ProtocolError(f"the device sent {len(buffer)} bytes where it announced {size}")
    outcome.data = bytes(buffer)
    status, outcome.value = yield from _final(outcome, text, say)
    if status is not Status.OKAY:
        raise ProtocolError("the device has more data than it announced")
    return outcome


def variable(name: str) -> Exchange:
    """`getvar`: the value. Raises DeviceRefusedError if the device does not know the variable."""
    return command(f"getvar:{name}")


def parse_variables(lines: Iterable[str]) -> dict[str, str]:
    """The variables listed by `getvar all`, by name. Names may contain colons (``partition-size:boot``); values begin
    after the last ``: `` or, without one, after the last colon."""
    variables = {}
    for line in lines:
        name, found, value = line.rpartition(": ")
        if not found:
            name, _, value = line.rpartition(":")
        if name:
            variables[name.strip()] = value.strip()
    return variables


def parse_number(text: str) -> int:
    """A number as devices write them: 0x…, decimal, or hexadecimal without a prefix. Raises ProtocolError."""
    return _number(text, (0, 16))


def parse_size(text: str) -> int:
    """A partition size in bytes: hexadecimal, from some devices without 0x. Raises ProtocolError.

    Source: Google's client, which parses `partition-size` this way, but not the other numbers.
    """
    return _number(text, (16,))


def _number(text: str, bases: Iterable[int]) -> int:
    """Parse with the first base that accepts the text."""
    text = text.strip()
    for base in bases:
        try:
            number = int(text, base)
        except ValueError:
            continue
        if 0 <= number < 1 << 64:
            return number
    raise ProtocolError(f"the device says {text!r} instead of a number")


def _final(outcome: Outcome, text: str, say: Say | None) -> Generator[None, bytes, tuple[Status, str]]:
    """The first response that is not INFO or TEXT."""
    for _ in range(LINES_MAX):
        status, rest = _parse((yield None))
        if status is Status.FAIL:
            raise DeviceRefusedError(f"{text.partition(':')[0]}: {rest or 'the device gives no reason'}", hint=None)
        if status not in (Status.INFO, Status.TEXT):
            return status, rest
        outcome.lines.append(rest)
        if say:
            say(rest)
    raise DeviceError(f"the device does not stop talking after {text!r}")


def _parse(message: bytes) -> tuple[Status, str]:
    if not 4 <= len(message) <= RESPONSE_MAX:
        raise ProtocolError(f"a response of {len(message)} bytes")
    try:
        return Status(message[:4].decode("latin-1")), message[4:].decode("utf-8", "replace").rstrip("\0\n")
    except ValueError:
        raise ProtocolError(f"a response that begins with {message[:4]!r}") from None


def _length(text: str) -> int:
    try:
        if len(text) != 8:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise ProtocolError(f"the device announces {text!r} bytes") from None


def _encoded(text: str) -> bytes:
    raw = text.encode()
    if not raw or len(raw) > COMMAND_MAX:
        raise UsageError(f"a command of {len(raw)} bytes", hint=f"at most {COMMAND_MAX}")
    return raw
