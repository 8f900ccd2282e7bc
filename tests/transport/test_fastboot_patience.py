# SPDX-License-Identifier: Apache-2.0
"""A device at work is waited for, a dead one is given up: fastboot over UDP with a clock of its own, against a board
that behaves as U-Boot 2025.01 does (net/fastboot_udp.c, drivers/virtio/virtio_net.c). No test waits for anything."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import pytest

from erofs_edge.errors import DeviceError
from erofs_edge.transport.fastboot import client, link
from erofs_edge.transport.fastboot.link import LEAST, SILENCE, WORK, Device, UdpLink

RING = 32
INFO = 30.0
QUERY, INIT, FASTBOOT = 1, 2, 3
Packet = tuple[float, bytes]


class Board:
    """The other end of a fake socket, and the clock of both.

    work   command → seconds that it takes
    info   whether it says so each INFO seconds
    lose   which of what it says is lost, by number and packet
    """

    def __init__(
        self,
        work: dict[str, float] | None = None,
        *,
        info: bool = False,
        lose: Callable[[int, bytes], bool] = lambda number, packet: False,
    ) -> None:
        self.now = 1000.0
        self.work, self.info, self.lose = work or {}, info, lose
        self.ring: list[bytes] = []
        self.most = 0  # packets that waited in the ring
        self.deaf = self.dead = False
        self.error: int | None = None  # what the kernel says to who speaks to it
        self.stops: list[float] = []  # seconds for which the program is stopped, before it listens again
        self.log: list[str] = []
        self._said: list[Packet] = []
        self._number = 0
        self._busy = 0.0
        self._sequence, self._last = 1, b""
        self._command: str | None = None
        self._left: int | None = None
        self._timeout = 0.0

    # the clock, and the socket
    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def connect(self, address: object) -> None: ...
    def close(self) -> None: ...

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_RCVTIMEO)
        seconds, microseconds = struct.unpack("@ll", value)
        self._timeout = seconds + microseconds / 1_000_000

    def send(self, packet: bytes) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self._settle()
        if not (self.deaf or self.dead):
            self.ring.append(bytes(packet))
            self.most = max(self.most, len(self.ring))
            self.deaf = len(self.ring) >= RING  # it is full, and nobody will say when it is not any more

    def recv(self, size: int) -> bytes:
        self.now += self.stops.pop(0) if self.stops else 0.0
        end = self.now + self._timeout
        while True:
            self._settle()
            if self._said and self._said[0][0] <= self.now:
                return self._said.pop(0)[1]
            events = [at for at in (self._busy, *(at for at, _ in self._said[:1])) if self.now < at <= end]
            if not events or self.dead:
                self.now = end
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self.now = min(events)

    # U-Boot
    def _settle(self) -> None:
        while self.ring and self._busy <= self.now:
            self._hear(self.ring.pop(0))

    def _say(self, at: float, packet: bytes) -> None:
        self._number += 1
        if not self.lose(self._number, packet):
            self._said.append((at, packet))

    def _hear(self, packet: bytes) -> None:
        kind, _, sequence = struct.unpack_from(">BBH", packet)
        data = packet[4:]
        if kind == QUERY:
            self._say(self.now, struct.pack(">BBHH", QUERY, 0, 0, self._sequence))
        elif sequence == self._sequence - 1 & 0xFFFF:
            self._say(self.now, self._last)
        elif sequence == self._sequence:
            answer = struct.pack(">HH", 1, 1024) if kind == INIT else self._answer(data)
            self._finish(kind, answer)

    def _finish(self, kind: int, answer: bytes) -> None:
        at = max(self.now, self._busy)
        self._last = struct.pack(">BBH", kind, 0, self._sequence) + answer
        self._sequence += 1
        self._say(at, self._last)

    def _answer(self, data: bytes) -> bytes:
        if self._left:
            self._left -= len(data)
            return b""
        if self._left == 0 and not data:
            self._left = None
            return b"OKAY"
        if self._command is None:
            self._command = data.decode()
            return b""
        command, self._command = self._command, None
        self.log.append(command)
        if command.startswith("download:"):
            self._left = int(command[9:], 16)
            return f"DATA{self._left:08x}".encode()
        seconds = self.work.get(command, 0.0)
        for turn in range(1, int(seconds // INFO) + 1) if self.info else ():
            packet = struct.pack(">BBH", FASTBOOT, 0, self._sequence) + b"INFOwriting"
            self._sequence += 1
            self._say(self.now + turn * INFO, packet)
        self._busy = self.now + seconds
        return b"OKAY"


class Sockets:
    """In place of the module."""

    SOCK_DGRAM = 2

    def __init__(self, board: Board) -> None:
        self.socket = lambda *_: board

    @staticmethod
    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 2, 17, "", (host, port))]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Board], Device]:
    def opened(board: Board) -> Device:
        monkeypatch.setattr(link, "socket", Sockets(board))
        monkeypatch.setattr(link, "time", board)
        return Device(UdpLink("board", 5554))

    return opened


Opened = Callable[[Board], Device]


def test_minutes_of_silent_work_are_waited_for_and_do_not_make_it_deaf(opened: Opened) -> None:
    board = Board({"oem run:x": WORK - 10})
    device = opened(board)
    started = board.now
    assert device.run(client.command("oem run:x")).value == ""
    assert WORK - 10 <= board.now - started < WORK
    assert board.most < RING / 2 and not board.deaf
    device.run(client.command("getvar:y"))
    assert board.log == ["oem run:x", "getvar:y"], "each once"


@pytest.mark.parametrize("lost", [(), (1,), (2, 3), tuple(range(1, 9))], ids=str)
def test_news_of_its_work_may_be_lost(opened: Opened, lost: tuple[int, ...]) -> None:
    """Without the rest it would wait for what the host has to say to it, and the host for what is lost."""
    news: list[bytes] = []

    def lose(number: int, packet: bytes) -> bool:
        if packet[4:8] == b"INFO":
            news.append(packet)
            return len(news) in lost
        return False

    board = Board({"flash:data": 700.0}, info=True, lose=lose)
    device = opened(board)
    said = device.run(client.command("flash:data")).lines
    assert len(said) == len(news) - len([number for number in lost if number <= len(news)])
    assert len(news) == 23
    device.run(client.command("getvar:y"))
    assert board.log == ["flash:data", "getvar:y"]


@pytest.mark.parametrize("held", [0, 64 << 20])
def test_a_dead_device_is_given_up(opened: Opened, held: int) -> None:
    board = Board()
    device = opened(board)

    def dying() -> client.Exchange:
        yield f"download:{held:08x}".encode() if held else b"flash:data"
        board.dead = True
        yield None
        return client.Outcome()

    started = board.now
    with pytest.raises(DeviceError, match="does not answer"):
        device.run(dying())
    assert board.now - started == pytest.approx(WORK + held / LEAST), "it may have to write that much"
    started = board.now
    with pytest.raises(DeviceError, match="does not answer"):
        device.run(client.command("flash:data"))
    assert board.now - started == pytest.approx(SILENCE), "it has not even heard this"


def test_what_a_download_is() -> None:
    assert client.announced(b"download:00010000") == 65536
    for other in (b"download:0001000g", b"getvar:product:12", b"download:1", b"", memoryview(b"download:")):
        assert client.announced(other) == 0


def test_a_board_that_stands_still_in_a_download_goes_on(opened: Opened) -> None:
    board = Board()
    device = opened(board)

    def parts() -> list[bytes]:
        board._busy = board.now + SILENCE - 20  # an emulator that was stopped
        return [bytes(5000)]

    assert device.run(client.download(5000, parts())).value == ""
    assert not board.deaf


def test_a_program_that_was_stopped_has_waited_for_nobody(opened: Opened) -> None:
    """Its clock went on; what it sent before is lost, and has to be sent again."""
    board = Board(lose=lambda number, packet: number in (3, 4))
    device = opened(board)
    board.stops = [100 * WORK, 100 * WORK]
    device.run(client.command("getvar:y"))
    assert board.log == ["getvar:y"]


def test_who_works_does_not_answer_for_its_address(opened: Opened) -> None:
    """The kernel of the host says that there is no such host, while U-Boot writes."""
    board = Board({"flash:data": 200.0})
    device = opened(board)
    plain, asked = board.send, 0

    def unreachable(packet: bytes) -> None:
        nonlocal asked
        asked += len(packet) == 4
        if asked > 1 and board.now < board._busy:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        plain(packet)

    board.send = unreachable  # type: ignore[method-assign]
    device.run(client.command("flash:data"))
    assert asked > 3
    board.error, started = errno.EHOSTUNREACH, board.now
    with pytest.raises(DeviceError, match="the device has disappeared"):
        device.run(client.command("getvar:y"))
    assert board.now - started < SILENCE / 4
    with pytest.raises(OSError, match="No route to host"):
        opened(board)
