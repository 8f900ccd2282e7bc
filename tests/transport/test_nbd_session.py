# SPDX-License-Identifier: Apache-2.0
"""Both sides of NBD joined in memory, and each against a scripted or a hostile peer."""

from __future__ import annotations

import itertools
import random
import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbd_pair import MemoryServer, converse, opened

from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError, ProtocolError
from erofs_edge.transport.nbd.client import Client
from erofs_edge.transport.nbd.server import Offer, Session

SIZE = 65536
GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
OPTION = bytes.fromhex("49484156454f5054")
STRUCTURED, GO, META, STARTTLS = 8, 7, 10, 5
ACK, INFO, CONTEXT, UNSUP = 1, 3, 4, 0x80000001
WHOLE = itertools.repeat(1 << 30)


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(data)) + data


def export_info(size: int, flags: int = 1) -> bytes:
    return option_reply(GO, INFO, struct.pack(">HQH", 0, size, flags))


def chunk(cookie: int, kind: int, data: bytes, *, last: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, last, kind, cookie, len(data)) + data


def data_at(offset: int, data: bytes) -> bytes:
    return struct.pack(">Q", offset) + data


def connected(*, structured: bool = True, size: int = SIZE) -> Client:
    """A client after a scripted negotiation, with base:allocation as context 5."""
    client = Client("x")
    client.feed.feed(GREETING)
    client.feed.feed(option_reply(STRUCTURED, ACK if structured else UNSUP))
    if structured:
        client.feed.feed(option_reply(META, CONTEXT, b"\0\0\0\5base:allocation") + option_reply(META, ACK))
    client.feed.feed(export_info(size) + option_reply(GO, ACK))
    client.outbox.clear()
    return client


def test_what_a_client_says_byte_by_byte() -> None:
    client = Client("ab")
    client.feed.feed(GREETING)
    client.feed.feed(option_reply(STRUCTURED, ACK) + option_reply(META, ACK) + export_info(512) + option_reply(GO, ACK))
    client.read(0x200, memoryview(bytearray(16)))
    client.write(0x10, b"data")
    client.disconnect()
    assert b"".join(map(bytes, client.outbox)) == b"".join(
        [
            bytes.fromhex("00000003"),
            OPTION + bytes.fromhex("00000008 00000000"),
            OPTION + bytes.fromhex("0000000a 0000001d 00000002") + b"ab" + b"\0\0\0\1\0\0\0\x0fbase:allocation",
            OPTION + bytes.fromhex("00000007 0000000a 00000002") + b"ab" + bytes.fromhex("0001 0003"),
            bytes.fromhex("25609513 0000 0000 0000000000000001 0000000000000200 00000010"),
            bytes.fromhex("25609513 0000 0001 0000000000000002 0000000000000010 00000004") + b"data",
            bytes.fromhex("25609513 0000 0002 0000000000000000 0000000000000000 00000000"),
        ]
    )


def test_what_a_server_says_byte_by_byte() -> None:
    session = Session({"ab": Offer(4096)})
    session.feed.feed(bytes.fromhex("00000003") + OPTION + bytes.fromhex("00000007 00000008 00000002 6162 0000"))
    session.feed.feed(bytes.fromhex("25609513 0000 0000 0000000000000009 0000000000000010 00000004"))
    assert session.request is not None
    assert b"".join(session.outbox) + session.data_header(session.request) == b"".join(
        [
            GREETING,
            option_reply(GO, INFO, bytes.fromhex("0000 0000000000001000 0187")),
            option_reply(GO, INFO, bytes.fromhex("0003 00000001 00001000 02000000")),
            option_reply(GO, ACK),
            bytes.fromhex("67446698 00000000 0000000000000009"),
        ]
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_both_sides_agree_however_the_bytes_arrive(data: st.DataObject) -> None:
    """Random requests, several under way, in pieces of random size: the client sees what a plain array would show."""
    pieces = random.Random(data.draw(st.integers(0, 1 << 32)))
    sizes = (pieces.choice([1, 3, 28, 500, 1 << 20]) for _ in itertools.count())
    content = bytearray(random.Random(1).randbytes(SIZE))
    model = bytearray(content)
    client, server = opened({"x": content, "y": bytearray(1)}, "x", sizes)
    ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5000)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))
    checks = []
    for offset, length in data.draw(st.lists(ranges, max_size=12)):
        match data.draw(st.sampled_from(["read", "take", "write", "zero", "status", "flush"])):
            case "take":
                target = bytearray(length)
                pending = client.read_to(offset, length, putting(target, offset))
                checks.append((pending, target, bytes(model[offset : offset + length])))
            case "read":
                target = bytearray(length)
                checks.append((client.read(offset, memoryview(target)), target, bytes(model[offset : offset + length])))
            case "write":
                new = pieces.randbytes(length)
                model[offset : offset + length] = new
                checks.append((client.write(offset, new), b"", b""))
            case "zero":
                model[offset : offset + length] = bytes(length)
                checks.append((client.write_zeroes(offset, length), b"", b""))
            case "status":
                checks.append((client.block_status(offset, length), b"", b""))
            case "flush":
                checks.append((client.flush(), b"", b""))
    converse(client, server, sizes)
    for pending, got, expected in checks:
        assert pending.done
        assert not pending.error
        assert got == expected
    assert content == model
    client.disconnect()
    converse(client, server, sizes)
    assert server.session.feed.done


def putting(target: bytearray, offset: int) -> Callable[[int, memoryview], None]:
    """Who takes what comes, and puts it into `target`, which is for bytes from `offset` on."""

    def take(at: int, data: memoryview) -> None:
        target[at - offset : at - offset + len(data)] = data

    return take


def test_who_takes_data_gets_parts_and_holes_as_they_come() -> None:
    """In the same memory, of the size of the request; nothing of what was not asked for."""
    client, parts = connected(), list[tuple[int, bytes]]()
    pending = client.read_to(8, 16, lambda at, data: parts.append((at, bytes(data))))
    client.feed.feed(chunk(1, 1, data_at(20, b"0123"), last=False) + chunk(1, 2, struct.pack(">QI", 12, 8), last=False))
    assert not pending.done
    client.feed.feed(chunk(1, 1, data_at(8, b"abcd")))
    assert pending.done
    assert parts == [(20, b"0123"), (12, bytes(8)), (8, b"abcd")]
    client.read_to(0, 4, lambda at, data: parts.append((at, bytes(data))))
    with pytest.raises(ProtocolError, match="not asked for"):
        client.feed.feed(chunk(2, 1, data_at(0, b"01234")))
    old = connected(structured=False)
    old.read_to(4, 4, lambda at, data: parts.append((at, bytes(data))))
    old.feed.feed(struct.pack(">IIQ", 0x67446698, 0, 1) + b"wxyz")
    assert parts[3:] == [(4, b"wxyz")]


@pytest.mark.parametrize("size", [1, 3, 28, 1000])
def test_answers_of_all_lengths_follow_data(size: int) -> None:
    """The next head is received behind what is taken, where so much must come: at the end nothing is waited for."""
    client, parts = connected(), dict[int, bytes]()
    pending = [client.read_to(at, 10, lambda at, data: parts.update({at: bytes(data)})) for at in range(0, 60, 10)]
    said = chunk(1, 1, data_at(0, b"0123456789")) + chunk(2, 0x8001, struct.pack(">IH", 5, 0))
    said += chunk(3, 1, data_at(20, b"abcde"), last=False) + chunk(3, 1, data_at(25, b"fghij"), last=False)
    said += chunk(3, 0, b"") + chunk(4, 2, struct.pack(">QI", 30, 10)) + struct.pack(">IIQ", 0x67446698, 5, 5)
    said += chunk(6, 1, data_at(50, b"ABCDEFGHIJ"))
    for at in range(0, len(said), size):
        client.feed.feed(said[at : at + size])
    assert all(one.done for one in pending)
    assert [one.error for one in pending] == [0, 5, 0, 0, 5, 0]
    assert parts == {0: b"0123456789", 20: b"abcde", 25: b"fghij", 30: bytes(10), 50: b"ABCDEFGHIJ"}


def test_a_server_that_answers_out_of_order_in_parts_and_with_holes() -> None:
    client = connected()
    first, second = bytearray(10), bytearray(8)
    one, two = client.read(0, memoryview(first)), client.read(100, memoryview(second))
    client.feed.feed(chunk(1, 1, data_at(6, b"6789"), last=False))
    client.feed.feed(chunk(2, 2, struct.pack(">QI", 100, 8)))
    assert two.done
    assert not one.done
    client.feed.feed(chunk(1, 1, data_at(0, b"012345"), last=False) + chunk(1, 0, b""))
    assert one.done
    assert (first, second) == (b"0123456789", bytes(8))


def test_an_old_server_is_read_in_the_old_way() -> None:
    client = connected(structured=False)
    target = bytearray(4)
    pending = client.read(0, memoryview(target))
    client.feed.feed(struct.pack(">IIQ", 0x67446698, 0, 1) + b"abcd")
    assert (pending.done, bytes(target)) == (True, b"abcd")
    client = Client("x")
    client.feed.feed(GREETING[:-1] + b"\1" + option_reply(STRUCTURED, UNSUP) + option_reply(GO, UNSUP))
    client.feed.feed(struct.pack(">QH", 4096, 1) + bytes(124))
    assert client.export is not None
    assert client.export.size == 4096


def test_block_status_and_errors_of_a_server() -> None:
    client = connected()
    status, failed = client.block_status(0, 300), client.write(0, b"x")
    client.feed.feed(chunk(1, 5, struct.pack(">IIIII", 5, 100, 0, 500, 3)))
    assert status.extents == [(100, 0), (500, 3)]
    client.feed.feed(chunk(2, 0x8001, struct.pack(">IH", 28, 4) + b"full"))
    with pytest.raises(ErofsEdgeError, match=r"failed to write 1 bytes at 0x0 \(ENOSPC\): full"):
        failed.check("here")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a wrong magic": (b"\0\0\0\1" + bytes(12), "starts with 0x00000001"),
    "a cookie of nobody": (chunk(9, 0, b""), "not made"),
    "a simple answer": (struct.pack(">IIQ", 0x67446698, 0, 1), "simple answer"),
    "data before the range": (chunk(1, 1, data_at(99, b"x" * 4)), "not asked for"),
    "data beyond the range": (chunk(1, 1, data_at(116, b"xx")), "not asked for"),
    "a hole of a gigabyte": (chunk(1, 2, struct.pack(">QI", 100, 1 << 30)), "not asked for"),
    "the same part twice": (
        chunk(1, 1, data_at(100, b"x" * 8), last=False) * 2 + chunk(1, 0, b""),
        "parts missing",
    ),
    "a part missing": (chunk(1, 1, data_at(100, b"x" * 8)), "parts missing"),
    "nothing at all": (chunk(1, 0, b""), "parts missing"),
    "more than asked for": (chunk(1, 1, data_at(100, b"x" * 16), last=False) * 2, "more data"),
    "an empty part": (chunk(1, 1, data_at(100, b"")), "a chunk of type"),
    "a huge chunk": (struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 0xFFFFFFFF) + data_at(100, b""), "not asked for"),
    "a part shorter than its offset": (chunk(1, 1, b"1234") + bytes(4), "a chunk of type"),
    "a huge error": (struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, 1, 0xFFFFFFFF), "error of 4294967295"),
    "an error longer than its chunk": (chunk(1, 0x8001, struct.pack(">IH", 5, 900)), "longer than its chunk"),
    "the status of a read": (chunk(1, 5, struct.pack(">III", 5, 100, 0)), "a chunk of type"),
    "an unknown chunk": (chunk(1, 77, b""), "a chunk of type"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_is_told_off(name: str) -> None:
    said, reason = HOSTILE[name]
    client = connected()
    client.read(100, memoryview(bytearray(16)))
    with pytest.raises(ProtocolError, match=reason):
        client.feed.feed(said)


STATUSES = {
    "of another context": struct.pack(">III", 6, 100, 0),
    "empty extents": struct.pack(">III", 5, 0, 0),
    "extents behind the end": struct.pack(">IIIII", 5, 300, 0, 1, 0),
    "cut short": struct.pack(">IIH", 5, 100, 0),
    "no extents": struct.pack(">I", 5),
}


@pytest.mark.parametrize("name", STATUSES)
def test_a_hostile_block_status(name: str) -> None:
    client = connected()
    client.block_status(0, 300)
    with pytest.raises(ProtocolError):
        client.feed.feed(chunk(1, 5, STATUSES[name]))


NEGOTIATIONS: dict[str, tuple[bytes, type[ErofsEdgeError], str]] = {
    "not NBD": (b"SSH-2.0-OpenSSH_9.2", ProtocolError, "not an NBD server"),
    "old style": (bytes.fromhex("4e42444d41474943 00420281861253 0000 0000"), ProtocolError, "not an NBD server"),
    "not fixed": (GREETING[:-1] + b"\0", ProtocolError, "fixed newstyle"),
    "another option": (GREETING + option_reply(77, ACK), ProtocolError, "another option"),
    "a long reply": (GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 31), ProtocolError, "option reply of"),
    "no such export": (
        GREETING + option_reply(8, UNSUP) + option_reply(GO, 0x80000006, b"no x"),
        DeviceError,
        "no such export: no x",
    ),
    "wants TLS": (GREETING + option_reply(8, UNSUP) + option_reply(GO, 0x80000005), DeviceRefusedError, "wants TLS"),
    "no size": (GREETING + option_reply(8, UNSUP) + option_reply(GO, ACK), ProtocolError, "what the export is"),
    "block size of 3": (
        GREETING + option_reply(8, UNSUP) + option_reply(GO, INFO, struct.pack(">HIII", 3, 3, 3, 3)),
        ProtocolError,
        "block sizes",
    ),
    "block size of 0": (
        GREETING + option_reply(8, UNSUP) + option_reply(GO, INFO, struct.pack(">HIII", 3, 0, 0, 0)),
        ProtocolError,
        "block sizes",
    ),
    "contexts without end": (
        GREETING + option_reply(8, ACK) + option_reply(META, CONTEXT, b"\0\0\0\1a") * 65,
        ProtocolError,
        "without end",
    ),
}


@pytest.mark.parametrize("name", NEGOTIATIONS)
def test_a_negotiation_that_fails(name: str) -> None:
    said, kind, reason = NEGOTIATIONS[name]
    with pytest.raises(kind, match=reason):
        Client("x").feed.feed(said)


def test_tls_comes_before_everything() -> None:
    client = Client("x", tls=True)
    client.feed.feed(GREETING)
    client.outbox.clear()
    client.feed.feed(option_reply(STARTTLS, ACK))
    assert client.upgrade
    refused = Client("x", tls=True)
    with pytest.raises(DeviceRefusedError, match="does not speak TLS"):
        refused.feed.feed(GREETING + option_reply(STARTTLS, 0x80000002))


def test_a_server_with_tls_says_nothing_in_the_clear() -> None:
    session = Session({"x": Offer(4096)}, tls=True)
    session.feed.feed(bytes.fromhex("00000003") + OPTION + struct.pack(">II", 3, 0))
    assert session.outbox[-1] == option_reply(3, 0x80000005)
    session.feed.feed(OPTION + struct.pack(">II", STRUCTURED, 0) + OPTION + struct.pack(">II", STARTTLS, 0))
    assert session.outbox[-2:] == [option_reply(STRUCTURED, 0x80000005), option_reply(STARTTLS, ACK)]
    assert session.upgrade
    session.feed.feed(OPTION + struct.pack(">II", 3, 0))
    assert session.outbox[-2:] == [option_reply(3, 2, b"\0\0\0\1x"), option_reply(3, ACK)]


def request(command: int, offset: int = 0, length: int = 0, cookie: int = 7, payload: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload


REFUSED: dict[str, tuple[bytes, int]] = {
    "a write": (request(1, 0, 4, payload=b"data"), 1),
    "zeroes": (request(6, 0, 4), 1),
    "a trim": (request(4, 0, 4), 1),
    "a read behind the end": (request(0, 4090, 7), 22),
    "a read that wraps": (request(0, (1 << 64) - 1, 2), 22),
    "an empty read": (request(0, 0, 0), 22),
    "a read of more than 32 MiB": (request(0, 0, 0xFFFFFFFF), 22),
    "an unknown command": (request(99), 22),
    "a cache request": (request(5, 0, 4), 22),
    "a status nobody agreed on": (request(7, 0, 4), 22),
    "a flush with a range": (request(3, 1, 1), 22),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_refuses(name: str) -> None:
    said, error = REFUSED[name]
    session = Session({"": Offer(4096)})
    session.feed.feed(bytes.fromhex("00000003") + OPTION + struct.pack(">II", 1, 0))
    session.outbox.clear()
    session.feed.feed(said)
    assert session.outbox == [struct.pack(">IIQ", 0x67446698, error, 7)]
    assert session.request is None


BROKEN = {
    "flags": b"\xff\xff\xff\xff",
    "an option's magic": bytes.fromhex("00000003") + b"x" * 16,
    "an option of 4 GiB": bytes.fromhex("00000003") + OPTION + b"\0\0\0\7\xff\xff\xff\xff",
    "options without end": bytes.fromhex("00000003") + (OPTION + struct.pack(">II", 3, 0)) * 257,
    "a request's magic": bytes.fromhex("00000003") + OPTION + struct.pack(">II", 1, 0) + b"x" * 28,
    "a write of 4 GiB": bytes.fromhex("00000003") + OPTION + struct.pack(">II", 1, 0) + request(1, 0, 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_client_that_breaks_the_protocol(name: str) -> None:
    with pytest.raises(ProtocolError):
        Session({"": Offer(4096)}).feed.feed(BROKEN[name])


def _client_case(rng: random.Random) -> None:
    client = connected()
    for _ in range(3):
        client.read(rng.randrange(SIZE), memoryview(bytearray(rng.choice([1, 16, 4096]))))
    client.block_status(0, 4096)
    parts = [chunk(rng.randrange(5), rng.choice([0, 1, 2, 5, 0x8001, 9]), rng.randbytes(rng.choice([0, 8, 12, 20])))]
    parts += [chunk(1, 1, data_at(0, b"x" * 16)), rng.randbytes(40)]
    client.feed.feed(mutated(b"".join(rng.sample(parts, len(parts))), rng))


def _handshake_case(rng: random.Random) -> None:
    said = GREETING + option_reply(STRUCTURED, ACK) + option_reply(META, CONTEXT, b"\0\0\0\1base:allocation")
    said += option_reply(META, ACK) + export_info(SIZE) + option_reply(GO, ACK)
    Client("x").feed.feed(mutated(said, rng))


def _server_case(rng: random.Random) -> None:
    server = MemoryServer({"": bytearray(4096), "x": bytearray(100)})
    name = rng.choice([b"", b"x", b"nobody"])
    said = bytes.fromhex("00000003") + OPTION + struct.pack(">II", STRUCTURED, 0)
    meta = struct.pack(">I", len(name)) + name + b"\0\0\0\1\0\0\0\x0fbase:allocation"
    said += OPTION + struct.pack(">II", META, len(meta)) + meta
    go = struct.pack(">I", len(name)) + name + b"\0\0"
    said += OPTION + struct.pack(">II", GO, len(go)) + go
    for _ in range(4):
        said += request(rng.randrange(9), rng.choice([0, 99, 4095]), rng.choice([0, 1, 4096]), payload=b"xxxx")
    for byte in mutated(said, rng):
        server.session.feed.feed(bytes([byte]))
        server.answer()


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
            case 2:
                del out[at : at + rng.randrange(1, 9)]
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
        if not out:
            break
    return bytes(out)


@pytest.mark.parametrize("case", [_client_case, _handshake_case, _server_case])
def test_mutated_conversations_end_well(case: Callable[[random.Random], None]) -> None:
    """A clear error or none at all, in bounded memory."""
    tracemalloc.start()
    try:
        ended = 0
        for seed in range(1500):
            try:
                case(random.Random(seed))
            except ErofsEdgeError:
                ended += 1
        assert ended > 100
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
