# SPDX-License-Identifier: Apache-2.0
"""The fastboot client against scripted and hostile devices."""

from __future__ import annotations

import random
import struct

import pytest

from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError, ProtocolError, UsageError
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.client import Exchange, Outcome
from erofs_edge.transport.fastboot.link import open_device
from erofs_edge.transport.fastboot.udp import Answer, Host


def played(exchange: Exchange, answers: list[bytes]) -> tuple[Outcome, list[bytes]]:
    """The outcome of a command with a device that gives these answers, and what it was told."""
    said: list[bytes] = []
    script = iter(answers)
    message = next(exchange)
    try:
        while True:
            if message is None or isinstance(message, int):
                message = exchange.send(next(script))
            else:
                said.append(bytes(message))
                message = exchange.send(b"")
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome, said


def test_a_command_with_its_lines() -> None:
    heard: list[str] = []
    outcome, said = played(client.command("oem x", heard.append), [b"INFOone", b"TEXTtwo", b"OKAYdone"])
    assert said == [b"oem x"]
    assert (outcome.value, outcome.lines) == ("done", ["one", "two"])
    assert heard == ["one", "two"]


def test_download_says_how_much_and_sends_it() -> None:
    outcome, said = played(client.download(10, [b"01234", b"56789"]), [b"DATA0000000a", b"INFOthanks", b"OKAY"])
    assert said == [b"download:0000000a", b"01234", b"56789"]
    assert outcome.lines == ["thanks"]


def test_upload_takes_what_was_announced() -> None:
    outcome, said = played(client.upload("upload", 100), [b"DATA00000006", b"abc", b"def", b"OKAY"])
    assert (said, outcome.data) == ([b"upload"], b"abcdef")


def test_variables_of_real_devices() -> None:
    lines = ["version: 0.4", "partition-size:boot_a: 0x4000000", "downloadsize:0x10000000", "odd"]
    assert client.parse_variables(lines) == {
        "version": "0.4",
        "partition-size:boot_a": "0x4000000",
        "downloadsize": "0x10000000",
    }
    assert [client.parse_number(text) for text in ("0x10", "16", "0000c0de", " 0X1F ")] == [16, 16, 0xC0DE, 31]
    with pytest.raises(ProtocolError):
        client.parse_number("much")
    assert [client.parse_size(text) for text in ("0x10000000", " 10000000", "c0de")] == [1 << 28, 1 << 28, 0xC0DE]
    with pytest.raises(ProtocolError, match="'-1' instead of a number"):
        client.parse_size("-1")


BAD: dict[str, tuple[Exchange, list[bytes], type[ErofsEdgeError], str]] = {
    "says no": (client.command("flash:x"), [b"FAILlocked"], DeviceRefusedError, "flash: locked"),
    "says no, and not why": (client.command("erase:x"), [b"FAIL"], DeviceRefusedError, "gives no reason"),
    "is no fastboot": (client.command("x"), [b"SSH-2.0"], ProtocolError, "begins with b'SSH-'"),
    "is short": (client.command("x"), [b"OK"], ProtocolError, "response of 2"),
    "is long": (client.command("x"), [b"OKAY" + b"x" * 300], ProtocolError, "response of 304"),
    "talks without end": (client.command("x"), [b"INFO."] * 20_000, DeviceError, "does not stop"),
    "wants data unasked": (client.command("x"), [b"DATA00000001"], ProtocolError, "asks for data"),
    "takes less": (client.download(9, [b"x" * 9]), [b"DATA00000008"], DeviceRefusedError, "8 bytes where 9"),
    "takes no data": (client.download(9, [b"x" * 9]), [b"OKAY"], ProtocolError, "does not ask for data"),
    "announces nonsense": (client.download(9, [b"x" * 9]), [b"DATA+000000f"[:11]], ProtocolError, "announces"),
    "sends more than allowed": (client.upload("upload", 4), [b"DATAffffffff"], ProtocolError, "more than 4"),
    "sends more than announced": (
        client.upload("upload", 9),
        [b"DATA00000002", b"abc", b"OKAY"],
        ProtocolError,
        "3 bytes where it announced 2",
    ),
    "sends empty packets": (client.upload("upload", 9), [b"DATA00000002", b""], ProtocolError, "empty packet"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_device_that(name: str) -> None:
    exchange, answers, kind, reason = BAD[name]
    with pytest.raises(kind, match=reason):
        played(exchange, answers)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UsageError):
        played(client.command("x" * 5000), [])
    for address in ("udp", "tcp:", "tcp:host:0", "tcp:host:http", "serial:x"):
        with pytest.raises(UsageError, match="not a fastboot device"):
            open_device(address)


def opened() -> Host:
    host = Host()
    host.hear(struct.pack(">BBHH", 1, 0, 0, 0xFFFE))
    host.hear(struct.pack(">BBHHH", 2, 0, 0xFFFE, 1, 2048))
    assert host.is_open
    return host


def test_udp_packets_byte_by_byte() -> None:
    host = Host()
    assert host.packet == bytes.fromhex("01000000")
    assert host.hear(bytes.fromhex("01000000 1234")) is None
    assert host.packet == bytes.fromhex("02001234 0001 05c0")
    assert host.hear(bytes.fromhex("02001234 0001 0400")) is None
    assert host.payload_max == 1020
    host.say(b"getvar:x", more=False)
    assert host.packet == bytes.fromhex("03001235") + b"getvar:x"
    assert host.hear(bytes.fromhex("03001235")) == Answer(b"", more=False)
    host.say(b"", more=False)
    assert host.hear(bytes.fromhex("03011236") + b"OK") == Answer(b"OK", more=True)


def test_udp_drops_what_is_old_and_wraps_around() -> None:
    host = opened()
    assert host.packet[:4] == bytes.fromhex("0200fffe")
    host.say(b"x", more=False)
    assert host.hear(struct.pack(">BBH", 3, 0, 0xFFFE)) is None
    assert host.hear(b"") is None
    assert host.hear(struct.pack(">BBH", 3, 0, 0xFFFF)) == Answer(b"", more=False)
    assert host.hear(struct.pack(">BBH", 3, 0, 0xFFFF)) is None
    host.say(b"y", more=False)
    assert host.packet[:4] == bytes.fromhex("03000000")
    with pytest.raises(DeviceError, match="reports an error: no"):
        host.hear(struct.pack(">BBH", 0, 0, 0) + b"no")


@pytest.mark.parametrize("answer", ["0100 0000", "0200 0000 0000 0400", "0200 0000 0001 0010", "0200 0000 00"])
def test_udp_openings_that_make_no_sense(answer: str) -> None:
    host = Host()
    with pytest.raises(ProtocolError):
        if answer.startswith("02"):
            host.hear(bytes.fromhex("0100 0000 0000"))
        host.hear(bytes.fromhex(answer))


def test_random_answers_end_well() -> None:
    ended = 0
    for seed in range(3000):
        rng = random.Random(seed)
        words = [b"OKAY", b"INFOx", b"TEXT", b"DATA00000004", b"DATAffffffff", b"FAIL", b"abcd", b"", b"\xff" * 5]
        answers = [rng.choice(words) for _ in range(8)] + [b"OKAY"]
        kind = rng.randrange(3)
        exchange = [client.command("x"), client.download(4, [b"abcd"]), client.upload("upload", 64)][kind]
        try:
            played(exchange, answers)
        except (ErofsEdgeError, RuntimeError) as error:
            # the script is over: a real link would meet its deadline
            assert not isinstance(error, RuntimeError) or isinstance(error.__cause__, StopIteration)
            ended += 1
    assert ended > 1000
