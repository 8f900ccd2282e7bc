# SPDX-License-Identifier: Apache-2.0
"""Fastboot over UDP with more than one packet under way, against the simulated device, with a clock of its own: no test
waits for anything."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable

import pytest

from erofs_edge.errors import DeviceError, ProtocolError
from erofs_edge.simulator.fastboot import FastbootDevice, UdpSide
from erofs_edge.transport.fastboot import client, link
from erofs_edge.transport.fastboot.link import UNDER_WAY, Device, UdpLink
from erofs_edge.transport.fastboot.udp import Answer, Host

Fault = Callable[[bytes], list[bytes]]


class Wire:
    """In place of the modules `socket` and `time`: a device at a socket's other end, which answers when it is listened
    to; and the clock, which runs only while nothing comes.

    fault  what the wire makes of a packet to the device
    back   the same of an answer
    ahead  the most packets that were sent before the answer to the first of them was heard, by the number sent so far
    """

    SOCK_DGRAM = 2

    def __init__(self, device: FastbootDevice) -> None:
        self.now, self.side = 0.0, UdpSide(device)
        self.fault: Fault = lambda packet: [packet]
        self.back: Fault = lambda packet: [packet]
        self.there: list[bytes] = []
        self.ahead: list[int] = []
        self._waiting: list[bytes] = []
        self._unheard = 0
        self._seconds = 0.0

    def socket(self, *_: object) -> Wire:
        return self

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 2, 17, "", (host, port))]

    def connect(self, address: object) -> None: ...
    def close(self) -> None: ...

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        seconds, microseconds = struct.unpack("@ll", value)
        self._seconds = seconds + microseconds / 1_000_000

    def monotonic(self) -> float:
        return self.now

    def send(self, packet: bytes) -> None:
        self._unheard += 1
        self.ahead.append(self._unheard)
        self.there += self.fault(packet)

    def recv(self, size: int) -> bytes:
        self._unheard = 0
        answers = [answer for packet in self.there if (answer := self.side.hear(packet)) is not None]
        self.there = []
        self._waiting += [said for answer in answers for said in self.back(answer)]
        if self._waiting:
            return self._waiting.pop(0)[:size]
        self.now += self._seconds
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


Opened = Callable[[Wire], Device]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    def opened(wire: Wire) -> Device:
        monkeypatch.setattr(link, "socket", wire)
        monkeypatch.setattr(link, "time", wire)
        return Device(UdpLink("board", 5554))

    return opened


@pytest.fixture
def board() -> FastbootDevice:
    return FastbootDevice({"data": bytearray(100_000)})


def flashed(device: Device, board: FastbootDevice, content: bytes) -> None:
    """Write a partition: it holds the content, and was written once."""
    board.log.clear()
    device.run(client.download(len(content), [content[:30_000], content[30_000:]]))
    device.run(client.command("flash:data"))
    assert bytes(board.partitions["data"][: len(content)]) == content
    assert board.log == [f"download:{len(content):08x}", "flash:data"]


def test_a_packet_travels_while_the_one_before_it_is_at_work(opened: Opened, board: FastbootDevice) -> None:
    wire = Wire(board)
    flashed(opened(wire), board, random.Random(1).randbytes(100_000))
    assert max(wire.ahead) == UNDER_WAY > 1
    assert wire.now == 0, "nothing was waited for"


def test_what_is_lost_is_repeated_and_then_one_goes_at_a_time(opened: Opened, board: FastbootDevice) -> None:
    """A device that has room for one packet."""
    wire = Wire(board)
    device = opened(wire)
    content = random.Random(2).randbytes(100_000)

    def full(packet: bytes) -> list[bytes]:
        return [packet] if len(packet) == 4 or not any(len(other) > 4 for other in wire.there) else []

    wire.fault = full
    flashed(device, board, content)
    waited = wire.now
    assert 0 < waited <= UNDER_WAY * link.REPEAT
    wire.ahead.clear()
    flashed(device, board, content)
    assert max(wire.ahead) == 1 and wire.now == waited


def spoiling(rng: random.Random, share: float) -> Fault:
    """Such a share of the packets is lost, doubled, or comes after the next."""
    held: list[bytes] = []

    def spoil(packet: bytes) -> list[bytes]:
        late, held[:] = held[:], []
        if rng.random() >= share:
            return [packet, *late]
        fault = rng.choice(["lost", "doubled", "late"])
        held.extend([packet] if fault == "late" else [])
        return [packet, packet, *late] if fault == "doubled" else late

    return spoil


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2])
def test_whatever_is_lost_doubled_or_late(opened: Opened, board: FastbootDevice, share: float) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        wire = Wire(board)
        device = opened(wire)
        wire.fault, wire.back = spoiling(rng, share), spoiling(rng, share)
        flashed(device, board, rng.randbytes(60_000))


def test_the_answer_to_a_packet_has_heard_those_before_it() -> None:
    host = Host()
    host.hear(struct.pack(">BBHH", 1, 0, 0, 0xFFFD))
    host.hear(struct.pack(">BBHHH", 2, 0, 0xFFFD, 1, 1024))
    said = [host.say(data, more=True, ahead=True) for data in (b"a", b"b", b"c")]
    assert [packet.hex() for packet in said] == ["0301fffe61", "0301ffff62", "0301000063"]
    assert host.under_way == said
    assert host.hear(bytes.fromhex("0300fffd")) is None and host.hear(bytes.fromhex("03000001")) is None
    assert host.hear(bytes.fromhex("0300ffff")) == Answer(b"", more=False)
    assert host.under_way == said[2:]
    for late in ("0300fffe", "0300ffff"):
        assert host.hear(bytes.fromhex(late)) is None
    assert host.hear(bytes.fromhex("03000000") + b"FAILno") == Answer(b"FAILno", more=False)
    assert not host.under_way
    assert host.say(b"d", more=False) == bytes.fromhex("0300000164")
    assert host.say(b"e", more=False) == bytes.fromhex("0300000165"), "in its place"
    host.say(b"f", more=False, ahead=True)
    with pytest.raises(DeviceError, match="reports an error: no"):
        host.hear(bytes.fromhex("00000002") + b"no")
    assert host.hear(bytes.fromhex("00000003") + b"of nothing") is None


def test_a_device_that_speaks_while_it_is_spoken_to(opened: Opened, board: FastbootDevice) -> None:
    wire = Wire(board)
    device = opened(wire)

    def speaks(packet: bytes) -> list[bytes]:
        return [packet] if len(packet) != 4 else [packet + b"FAILstop"]

    def parts() -> list[bytes]:
        wire.back = speaks
        return [bytes(5000)]

    with pytest.raises(ProtocolError, match="speaks while it is spoken to"):
        device.run(client.download(5000, parts()))
