# SPDX-License-Identifier: Apache-2.0
"""Numbers and records of the NBD specification, as both sides use them. All integers are big-endian."""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct

PORT = 10809
MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

GREETING = Struct(">QQH")  # magic, option magic, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # magic, option, length
OPTION_REPLY = Struct(">QIII")  # magic, option, reply type, length
INFO_EXPORT = Struct(">HQH")  # NBD_INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE = Struct(">HIII")  # NBD_INFO_BLOCK_SIZE, minimum, preferred, maximum payload
REQUEST = Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE = Struct(">IIQ")  # magic, error, cookie
STRUCTURED = Struct(">IHHQI")  # magic, flags, type, cookie, length
EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags
NAME_MAX = 4096  # bytes of a string
OPTION_MAX = 2 * NAME_MAX + 4096  # bytes of an option's data that we accept
BLOCK_MIN, BLOCK_PREFERRED, PAYLOAD_MAX = 1, 4096, 32 << 20
ALLOCATION = "base:allocation"


class Handshake(IntFlag):
    """Flags of a server's greeting and of the client's answer."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client may request before it has an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """A server's answers to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    """Abilities of an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    ROTATIONAL = 16
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256


class Command(IntEnum):
    """Requests to an export."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """How to carry out a command."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8


class Chunk(IntEnum):
    """Types of structured replies."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


CHUNK_DONE = 1  # flag of a structured reply: the last one for its request
IS_ERROR = 0x8000  # bit of a structured reply's type

STATE_HOLE, STATE_ZERO = 1, 2  # flags of base:allocation

ERRORS = {
    errno.EPERM: 1,
    errno.EIO: 5,
    errno.ENOMEM: 12,
    errno.EINVAL: 22,
    errno.ENOSPC: 28,
    errno.EOVERFLOW: 75,
    errno.EOPNOTSUPP: 95,
    errno.ESHUTDOWN: 108,
}
"""errno → the specification's number; all others become EIO"""
ERROR_NAMES = {number: errno.errorcode[code] for code, number in ERRORS.items()}
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108


def option(number: Option, data: bytes = b"") -> bytes:
    """A client's option."""
    return OPTION.pack(OPTION_MAGIC, number, len(data)) + data


def option_reply(number: int, kind: OptionReply, data: bytes = b"") -> bytes:
    """A server's answer to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, number, kind, len(data)) + data


def string(text: str) -> bytes:
    """A counted string inside an option."""
    raw = text.encode()
    return len(raw).to_bytes(4, "big") + raw
