# SPDX-License-Identifier: Apache-2.0
"""The client's end of a socket, on a pair of them: all of what is sent and received, files, silence, an end."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import eventually

from erofs_edge.errors import DeviceError, SourceError
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.nbd import NbdWire
from erofs_edge.transport.nbd.client import Said, Stretch
from erofs_edge.transport.nbd.connect import FLUSH, TIMEOUT, Address, Connection
from erofs_edge.transport.nbd.link import AT_ONCE, Link, dial

Pair = Callable[[float], tuple[Link, socket.socket]]
DATA = random.Random(7).randbytes(3 << 20)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """pair(seconds of silence): a link, and the socket at its other end."""
    opened: list[socket.socket] = []

    def connect(timeout: float) -> tuple[Link, socket.socket]:
        mine, other = socket.socketpair()
        opened.extend((mine, other))
        return Link(mine, timeout), other

    yield connect
    for end in opened:
        end.close()


def heard(other: socket.socket, length: int, work: Callable[[], None]) -> bytes:
    """What comes to the other end while `work` goes on."""
    buffer = bytearray(length)

    def take() -> None:
        view = memoryview(buffer)
        while view and (count := other.recv_into(view)):
            view = view[count:]

    reader = threading.Thread(target=take)
    reader.start()
    work()
    reader.join()
    return bytes(buffer)


@pytest.mark.parametrize("blocking", [True, False])
def test_everything_arrives_in_order(blocking: bool, pair: Pair, tmp_path: Path) -> None:
    """More than the socket holds, more pieces than one call takes, and a part of a file in between; with the kernel's
    deadlines and with Python's, which TLS has."""
    link, other = pair(600)
    if not blocking:
        link._whole = 0
        link._socket.settimeout(600)
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        said: list[Said] = [b"head", Stretch(file.fileno(), 1000, 2 << 20), memoryview(DATA)]
        said += [bytes([number & 255]) for number in range(AT_ONCE + 3)]
        want = b"head" + DATA[1000 : 1000 + (2 << 20)] + DATA + bytes(number & 255 for number in range(AT_ONCE + 3))
        assert heard(other, len(want), lambda: link.send(said)) == want


def test_a_buffer_is_filled_in_one_call(pair: Pair) -> None:
    link, other = pair(600)
    buffer = bytearray(len(DATA))
    sender = threading.Thread(target=other.sendall, args=(DATA,))
    sender.start()
    assert link.receive(memoryview(buffer)) == len(DATA)
    sender.join()
    assert buffer == DATA
    other.close()
    assert link.receive(memoryview(buffer)) == 0


def test_silence_ends(pair: Pair) -> None:
    """Nothing comes; and nobody takes what is sent."""
    link, _ = pair(0.05)
    with pytest.raises(TimeoutError):
        link.receive(memoryview(bytearray(10)))
    with pytest.raises(TimeoutError):
        link.send([DATA])


def test_what_comes_before_the_silence_counts(pair: Pair) -> None:
    link, other = pair(0.05)
    other.sendall(b"some")
    assert link.receive(memoryview(bytearray(10))) == 4


def test_a_file_that_is_shorter(pair: Pair, tmp_path: Path) -> None:
    link, other = pair(600)
    (tmp_path / "file").write_bytes(b"short")
    with (tmp_path / "file").open("rb") as file, pytest.raises(SourceError, match="shorter"):
        link.send([Stretch(file.fileno(), 0, 100)])
    assert other.recv(100) == b"short"
    with (tmp_path / "other").open("wb") as file, pytest.raises(SourceError, match="cannot read"):
        link.send([Stretch(file.fileno(), 0, 100)])


class Slow(NbdWire):
    """Says nothing for some times as long as anybody waits; then, at the end of its patience, what it has to say."""

    silent, asked, there = 0, 0, True

    def receive(self, buffer: memoryview) -> int:
        if self.silent:
            self.silent -= 1
            self.asked += 1
            raise TimeoutError
        return super().receive(buffer)

    def hears(self) -> bool:
        return self.there


def test_who_writes_for_minutes_is_waited_for() -> None:
    wire = Slow(SimulatedDisk.of_size(1 << 20))
    connection = Connection(Address("nbd://slow/disk", "disk", "slow"), wire=wire)

    def after(times: int, work: Callable[[], object]) -> int:
        """Silences that it took, each of 30 seconds."""
        wire.silent, wire.asked = times, 0
        work()
        return wire.asked

    turns = int(FLUSH / TIMEOUT)
    assert after(turns, connection.flush) == turns
    assert after(1, lambda: connection.zero(0, 4096)) <= 1
    with pytest.raises(DeviceError, match="no answer for 30 s"):
        after(1, lambda: connection.read(0, 512))
    wire = Slow(SimulatedDisk.of_size(1 << 20))
    connection = Connection(Address("nbd://slow/disk", "disk", "slow"), wire=wire)
    wire.silent = turns + 1
    with pytest.raises(DeviceError, match="no answer for 630 s"):
        connection.flush()
    wire = Slow(SimulatedDisk.of_size(1 << 20))
    connection = Connection(Address("nbd://slow/disk", "disk", "slow"), wire=wire)
    wire.silent, wire.asked, wire.there = turns, 0, False
    with pytest.raises(DeviceError, match="no answer for 30 s"):
        connection.flush()
    assert wire.asked == 1, "a machine that does not even acknowledge is not there"


def test_whether_the_other_machine_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = dial(server.getsockname()[:2], 60)
        other, _ = server.accept()
        assert link._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        link.send([b"x"])
        assert other.recv(1) == b"x"
        assert eventually(link.hears), "its kernel has acknowledged that, whether it is read or not"
        link.send([b"y"])
        assert eventually(link.hears)
        other.close()
        link.close()
        assert not link.hears()
