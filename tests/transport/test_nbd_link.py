# SPDX-License-Identifier: Apache-2.0
"""The client's end of a socket, on a pair of them: all of what is sent and received, files, silence, an end."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erofs_edge.errors import SourceError
from erofs_edge.transport.nbd.client import Said, Stretch
from erofs_edge.transport.nbd.link import AT_ONCE, Link

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
