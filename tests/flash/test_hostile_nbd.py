# SPDX-License-Identifier: Apache-2.0
"""An NBD server that lies or disconnects while a board is flashed: an ErofsEdgeError, and nothing outside the plan."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import pytest
from sweep import Board, quiet, started

from erofs_edge.errors import DeviceError, ErofsEdgeError
from erofs_edge.flash.execute import flash
from erofs_edge.flash.nbd import NbdTarget
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.nbd import EXPORT, NbdWire
from erofs_edge.transport.nbd.connect import PIECE, Address, Connection
from erofs_edge.transport.nbd.server import Request


class BadWire(NbdWire):
    """Changes, cuts or repeats what the server sends, once selected."""

    def __init__(self, disk: SimulatedDisk, random: Random, after: int) -> None:
        self.random, self.left = random, after
        super().__init__(disk)

    def receive(self, buffer: memoryview) -> int:
        count = super().receive(buffer)
        self.left -= 1
        if self.left > 0 or not count:
            return count
        kind = self.random.randrange(4)
        if kind == 0:
            return 0  # the server is gone
        if kind == 1:
            buffer[self.random.randrange(count)] ^= 1 << self.random.randrange(8)
        if kind == 2:
            buffer[:count] = self.random.randbytes(count)
        return count


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(tmp_path_factory.mktemp("board"))


def run(board: Board, disk: SimulatedDisk, wire: NbdWire) -> None:
    address = Address("nbd://hostile/disk", EXPORT, "hostile")
    target = NbdTarget(Connection(address, wire=wire))
    prepared = prepare(board.images[2], target, Wish(), quiet)
    flash(prepared.plan, target, quiet, found=prepared.found)


@pytest.mark.parametrize("seed", range(6))
def test_it_fails_and_the_board_starts(seed: int, board: Board) -> None:
    """Wherever the answers go wrong: a clear error or a correct flash, and a board that starts."""
    failed = 0
    for number in range(60):
        random = Random(f"{seed} {number}")
        disk = SimulatedDisk(board.before("update", random))
        try:
            run(board, disk, BadWire(disk, random, after=random.randrange(1, 120)))
        except ErofsEdgeError:
            failed += 1
        found = started(disk.memory)
        assert found is not None and found.root_hash in board.roots.values()
    assert failed > 20


def test_what_is_kept_is_untouched(board: Board, tmp_path: Path) -> None:
    """Data and the slot that the board relies on, whatever a server says about them."""
    for number in range(80):
        random = Random(number)
        before = board.before("update", random)
        disk = SimulatedDisk(bytearray(before), log=[])
        with contextlib.suppress(ErofsEdgeError):
            run(board, disk, BadWire(disk, random, after=random.randrange(60, 120)))
        places = [board.places[name] for name in ("boot_b", "system_b", "misc")]
        for write in disk.log or []:
            if write.is_flush:
                continue
            inside = any(start <= write.offset and write.offset + len(write.data) <= end for start, end in places)
            assert inside or _whole_disk(disk), write.offset


def _whole_disk(disk: SimulatedDisk) -> bool:
    """An unreadable table makes it a blank disk; the first write then is the erased table."""
    first = next(write for write in disk.log or [] if not write.is_flush)
    return first.offset == 0


def connected(disk: SimulatedDisk) -> NbdTarget:
    address = Address("nbd://simulated/disk", EXPORT, "simulated")
    return NbdTarget(Connection(address, wire=NbdWire(disk)))


def test_scattered_blocks_gather_and_arrive() -> None:
    """Small writes are collected until something depends on them; in the end the disk has them all."""
    disk = SimulatedDisk.of_size(4 << 20)
    target, random, wanted = connected(disk), Random(1), bytearray(disk.memory)
    for number in range(500):
        at = random.randrange((4 << 20) // 4096) * 4096
        data = random.randbytes(4096)
        assert target.write(at, data) == 4096
        wanted[at : at + 4096] = data
        if number % 97 == 0:
            assert target.read(at, 4096) == data
    target.flush()
    assert disk.memory == wanted


@pytest.mark.parametrize("piece", [None, 1 << 20])
def test_a_request_is_as_large_as_was_asked_for(piece: int | None) -> None:
    """For an export where each request is expensive, such as a board's control export, a request is for more bytes."""
    disk, sizes = SimulatedDisk.of_size(4 << 20), list[int]()

    class Counted(NbdWire):
        def _carry_out(self, request: Request) -> bytes:
            sizes.append(request.length)
            return super()._carry_out(request)

    address = Address("nbd://simulated/disk", EXPORT, "simulated")
    more = {} if piece is None else {"piece": piece}
    connection = Connection(address, wire=Counted(disk), **more)
    data = Random(6).randbytes((2 << 20) + 5)
    connection.write(4096, data)
    assert connection.read(4096, len(data)) == data
    assert sizes == [*[piece or PIECE] * ((2 << 20) // (piece or PIECE)), 5] * 2


def test_what_is_posted_is_not_waited_for(tmp_path: Path) -> None:
    """The next caller receives the answers, including an error, which is raised once."""
    disk = SimulatedDisk.of_size(4 << 20)
    address = Address("nbd://simulated/disk", EXPORT, "simulated")
    connection = Connection(address, wire=NbdWire(disk))
    data = Random(8).randbytes(3 << 20)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        before = connection.received
        connection.post_file(0, file.fileno(), 0, len(data))
        assert connection.received == before
        assert connection.read(5, 100) == data[5:105]
        connection.settle()
        assert bytes(disk.memory) == data + bytes(1 << 20)
        disk.power = 0
        connection.post_file(0, file.fileno(), 0, len(data))
        with pytest.raises(DeviceError, match="write 1048576 bytes at 0x0"):
            connection.settle()
        connection.settle()


def test_what_an_export_holds_is_seen_byte_by_byte() -> None:
    disk = SimulatedDisk(bytearray(Random(3).randbytes(2 << 20)))
    target, want = connected(disk), bytearray(disk.memory[4096 : 1 << 20])
    assert target.holds(4096, want)
    for at in (0, 300_000, len(want) - 1):
        want[at] ^= 1
        assert not target.holds(4096, want)
        want[at] ^= 1
    target.write(8192, b"gathered")
    assert not target.holds(4096, want)
    assert not target.holds(disk.size - 5, want)


def test_an_error_of_a_gathered_write_is_told() -> None:
    disk = SimulatedDisk.of_size(1 << 20)
    target = connected(disk)
    target.write(0, b"x" * 4096)
    disk.power = 0
    with pytest.raises(OSError, match="power"):
        target.flush()
