# SPDX-License-Identifier: Apache-2.0
"""The client's end of a socket, on a pair of them: all of what is sent and received, files, silence, an end."""

from __future__ import annotations

import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from waiting import eventually

from erofs_edge.errors import DeviceError, ProtocolError, SourceError
from erofs_edge.flash.execute import flash
from erofs_edge.flash.nbd import NbdTarget
from erofs_edge.flash.plan import plan_flash
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.nbd import NbdWire
from erofs_edge.transport.nbd.client import Said, Stretch
from erofs_edge.transport.nbd.connect import FLUSH, READS, TIMEOUT, Address, Connection
from erofs_edge.transport.nbd.link import AT_ONCE, UNDER_WAY, Link, dial

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


def test_a_server_of_this_machine_may_fall_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        link = dial(tmp_path / "socket", TIMEOUT)
        usual = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNDER_WAY)
        granted = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert link._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == max(granted, usual)
        link.close()


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


@contextmanager
def quiet(label: str) -> Iterator[Callable[[int, int], None]]:
    """Nobody is told."""
    yield lambda done, total: None


class Slow(NbdWire):
    """Says nothing for some times as long as anybody waits; then, at the end of its patience, what it has to say.
    `each`: so often before whatever it says."""

    silent, asked, each, there = 0, 0, 0, True

    def receive(self, buffer: memoryview) -> int:
        if self.silent:
            self.silent -= 1
            self.asked += 1
            raise TimeoutError
        self.silent = self.each
        return super().receive(buffer)

    def hears(self) -> bool:
        return self.there


def slow(size: int = 1 << 20) -> tuple[Slow, Connection]:
    wire = Slow(SimulatedDisk.of_size(size))
    return wire, Connection(Address("nbd://slow/disk", "disk", "slow"), wire=wire)


def test_a_flush_waits_for_what_was_posted(tmp_path: Path) -> None:
    """It makes last what the server has answered before: so no flush is sent while an answer is due."""
    (tmp_path / "data").write_bytes(DATA)
    at_flush = []

    class Watched(NbdWire):
        def send(self, chunks: Sequence[Said], patience: float = 0.0) -> None:
            if all(isinstance(chunk, bytes) for chunk in chunks) and b"".join(map(bytes, chunks))[6:8] == b"\0\x03":
                at_flush.append(len(self._answers))
            super().send(chunks, patience)

    connection = Connection(Address("nbd://x/disk", "disk", "x"), wire=Watched(SimulatedDisk.of_size(4 << 20)))
    with (tmp_path / "data").open("rb") as file:
        connection.post_file(0, file.fileno(), 0, len(DATA))
        connection.flush()
    assert at_flush == [0], "the command is NBD_CMD_FLUSH, and nothing is left to be heard"
    assert connection.read(0, len(DATA)) == DATA


FEW, MANY = READS, 1 + int(FLUSH / TIMEOUT)
WORKS: dict[str, tuple[Callable[[Connection], object], int]] = {
    "flush": (Connection.flush, MANY),
    "zero": (lambda connection: connection.zero(0, 4096), MANY + 1),  # a part of a second more
    "write": (lambda connection: connection.write(0, b"x" * 4096), MANY),
    "read": (lambda connection: connection.read(0, 512), FEW),
}


@pytest.mark.parametrize("name", WORKS)
def test_who_is_busy_for_minutes_is_waited_for(name: str) -> None:
    """Silences are of 30 seconds each."""
    work, turns = WORKS[name]
    wire, connection = slow()
    wire.silent = turns - 1
    work(connection)
    assert wire.asked == turns - 1
    wire, connection = slow()
    wire.silent = turns
    with pytest.raises(DeviceError, match=f"no answer for {turns * 30} s"):
        work(connection)
    wire, connection = slow()
    wire.silent, wire.there = turns - 1, False
    with pytest.raises(DeviceError, match="no answer for 30 s"):
        work(connection)
    assert wire.asked == 1, "a machine that does not even acknowledge is not there"


def test_a_flash_to_a_starved_board_is_slow_and_no_more(tmp_path: Path) -> None:
    """Each answer takes a minute: of what is written, made zeros, made to last, and read back."""
    image, random_bytes = tmp_path / "image", random.Random(9)
    image.write_bytes(random_bytes.randbytes(1 << 20) + bytes(1 << 20) + random_bytes.randbytes(1 << 20))
    with image.open("r+b") as file:
        file.truncate(4 << 20)
    wire, connection = slow(4 << 20)
    wire.each = 2
    target = NbdTarget(connection)
    (done,) = flash(plan_flash(image, target.identity), target, quiet)
    assert done.verified == 4 << 20 and wire.asked > 20
    assert bytes(wire.disk.memory) == image.read_bytes()


@pytest.mark.parametrize("blocking", [True, False])
def test_who_takes_nothing_for_a_while_is_waited_for(blocking: bool, pair: Pair, tmp_path: Path) -> None:
    """Until the machine is asked for the third time whether it is there, of bytes and of a file."""
    link, other = pair(0.05)
    if not blocking:
        link._whole = 0
        link._socket.settimeout(0.05)
    (tmp_path / "file").write_bytes(DATA)
    got, asked, reads = bytearray(), list[int](), threading.Event()

    def take() -> None:
        reads.wait()
        while len(got) < 2 * len(DATA):
            got.extend(other.recv(1 << 20))

    def hears() -> bool:
        asked.append(1)
        if len(asked) == 3:
            reads.set()
        return True

    link.hears = hears  # type: ignore[method-assign]
    reader = threading.Thread(target=take)
    reader.start()
    with (tmp_path / "file").open("rb") as file:
        link.send([DATA, Stretch(file.fileno(), 0, len(DATA))], 600)
    reader.join()
    assert got == DATA * 2 and len(asked) >= 3


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


@pytest.mark.parametrize(("probes", "unacked", "there"), [(0, 0, True), (1, 0, True), (2, 0, False), (0, 1, False)])
def test_who_answers_no_question_is_gone(probes: int, unacked: int, there: bool) -> None:
    """Of one that takes no more TCP asks again and again: one question may be under way."""

    class Told:
        family = socket.AF_INET

        def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
            return bytes([1, 0, 0, probes, 0, 0, 0, 0]) + bytes(16) + unacked.to_bytes(4, sys.byteorder) + bytes(76)

        def setsockopt(self, level: int, option: int, value: object) -> None:
            """Takes anything."""

        def settimeout(self, seconds: float | None) -> None:
            """Takes anything."""

    assert Link(cast("socket.socket", Told()), 30).hears() == there


def test_a_broken_rule_is_said_of_the_server_that_broke_it(pair: Pair) -> None:
    link, other = pair(TIMEOUT)
    other.sendall(b"NBDMAGICIHAVEOPT\0\0")  # no fixed newstyle
    with pytest.raises(ProtocolError, match="fixed newstyle") as caught:
        Connection(Address("nbd://192.0.2.1/x", "x", "192.0.2.1"), wire=link)
    assert caught.value.where == "nbd://192.0.2.1/x"
