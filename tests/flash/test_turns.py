# SPDX-License-Identifier: Apache-2.0
"""When a decompressing target is sent compressed data: whichever is faster, with simulated clocks of wires and
boards."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from sweep import quiet

from erofs_edge.errors import PartialWriteError
from erofs_edge.flash.estimate import estimate
from erofs_edge.flash.execute import flash
from erofs_edge.flash.pace import BELIEVED, FIRST, MORE, OFTEN, PACKED, PLAIN, SELDOM, TRIAL, Pace
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.flash.target import Ability, Effort
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.target import SimulatedTarget

CLEVER = Ability.READ | Ability.HASH | Ability.PATCH
MIB = 1 << 20
SIZE = 48 * MIB
QUICK, SLOW = 100e6, 5e6  # bytes a second
REQUEST = 0.1  # seconds


class Board(SimulatedTarget):
    """Has a clock, which its wire and its processor advance: bytes per second of both. `sent_as`: (compressed, bytes of
    the disk) of what arrived."""

    def __init__(self, wire: float, unpacks: float, effort: Effort | None = None, size: int = SIZE) -> None:
        super().__init__(SimulatedDisk.of_size(size), CLEVER)
        self.wire, self.unpacks, self.known, self.now = wire, unpacks, effort or Effort(), 0.0
        self.sent_as: list[tuple[bool, int]] = []

    @property
    def effort(self) -> Effort:
        return self.known

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self.now += len(data) / self.wire
        self.sent_as.append((False, len(data)))
        return super().write(offset, data)

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        self.now += REQUEST + len(delta) / self.wire + length / self.unpacks
        self.sent_as.append((True, length))
        super().patch(source, source_length, offset, length, delta)

    def had(self, *, packed: bool) -> int:
        """Return the bytes of the disk that arrived this way."""
        return sum(size for one, size in self.sent_as if one == packed)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that compresses to half its size, everywhere."""
    path, random = tmp_path_factory.mktemp("turns") / "half", Random(3)
    with path.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(random.randbytes(MIB // 2) + b"the same " * 60_000)
        file.truncate(SIZE)
    return path


def write(image: Path, board: Board) -> None:
    """Write everything, and check that it arrives."""
    prepared = prepare(image, board, Wish(full=True), quiet)
    (done,) = flash(prepared.plan, board, quiet, verify=False, found=prepared.found, clock=lambda: board.now)
    assert bytes(board.disk.memory) == image.read_bytes()
    assert done.written == image.stat().st_size == board.had(packed=False) + board.had(packed=True)


def test_a_slow_wire_gets_it_packed(half: Path) -> None:
    """After one MiB."""
    board = Board(SLOW, QUICK)
    write(half, board)
    assert board.had(packed=False) == FIRST
    assert board.sent_as[0] == (False, FIRST) and all(packed for packed, _ in board.sent_as[1:])
    assert board.sent < SIZE * 0.6


def test_a_slow_board_gets_it_plain(half: Path) -> None:
    """After a trial, since it does not say that it is slow."""
    board = Board(QUICK, SLOW)
    write(half, board)
    assert board.had(packed=True) == TRIAL


@pytest.mark.parametrize("effort", [Effort(REQUEST, 1 / SLOW), Effort(10.0)])
def test_a_board_that_says_it_is_slow_gets_nothing_packed(half: Path, effort: Effort) -> None:
    board = Board(QUICK, SLOW, effort)
    write(half, board)
    assert board.had(packed=True) == 0
    assert board.sent == SIZE


def test_a_board_that_says_too_little_of_itself_is_measured(half: Path) -> None:
    """What it reports is the least that it needs."""
    board = Board(QUICK, SLOW, Effort(REQUEST / 2, 1 / QUICK))
    write(half, board)
    assert board.had(packed=True) <= TRIAL


def test_it_takes_the_same_turns_again(half: Path) -> None:
    runs = [Board(20e6, 30e6) for _ in range(2)]
    for board in runs:
        write(half, board)
    assert runs[0].sent_as == runs[1].sent_as


@pytest.mark.parametrize("slower", ["wire", "board"])
def test_what_becomes_slow_in_between(half: Path, slower: str) -> None:
    """The wire: compressed from then on. The board: uncompressed from then on."""

    class Changing(Board):
        def settle(self) -> None:
            if sum(size for _, size in self.sent_as) > 24 * MIB:
                self.wire, self.unpacks = (SLOW, QUICK) if slower == "wire" else (QUICK, SLOW)

    board = Changing(QUICK, 90e6) if slower == "wire" else Changing(SLOW * 4, QUICK)
    write(half, board)
    last = board.sent_as[-1][0]
    assert last == (slower == "wire")


def test_noise_is_not_packed_for_a_trial(tmp_path: Path) -> None:
    """Nor does noise prevent the compression of later data."""
    path, board = tmp_path / "noise", Board(SLOW, QUICK, size=32 * MIB)
    path.write_bytes(Random(4).randbytes(8 * MIB) + bytes([7]) * (24 * MIB))
    write(path, board)
    assert [packed for packed, _ in board.sent_as] == sorted(packed for packed, _ in board.sent_as)
    assert board.had(packed=True) >= 16 * MIB


@pytest.mark.parametrize("abilities", [CLEVER, Ability.READ | Ability.HASH])
def test_a_plan_says_up_to_how_much_is_sent(half: Path, abilities: Ability) -> None:
    """If a target decompresses it may be less, and is, not counting the traffic of its proof."""
    there = SimulatedTarget(SimulatedDisk.of_size(SIZE), abilities)
    prepared = prepare(half, there, Wish(full=True), quiet)
    cost = estimate(prepared, there)
    assert (cost.at_most, cost.written) == (Ability.PATCH in abilities, SIZE)
    assert SIZE <= cost.on_wire < SIZE * 1.001
    before = there.sent
    flash(prepared.plan, there, quiet, found=prepared.found)
    assert there.sent - before <= SIZE


def test_what_fails_on_its_way_is_told_before_it_ends(half: Path) -> None:
    class Full(Board):
        def settle(self) -> None:
            if len(self.sent_as) > 2:
                raise OSError(errno.EIO, "the card is gone")

    board = Full(QUICK, SLOW)
    prepared = prepare(half, board, Wish(full=True), quiet)
    with pytest.raises(PartialWriteError, match="the card is gone"):
        flash(prepared.plan, board, quiet, found=prepared.found, clock=lambda: board.now)


def settled(plain: float, packed: float) -> Pace:
    """The speed of both ways is known: bytes per second."""
    pace = Pace(Effort())
    pace.took(FIRST, FIRST / SLOW, packed=False)
    assert (pace.packs, pace.amount, pace.pays(MIB, 1)) == (True, TRIAL, True)
    pace.took(PACKED, PACKED / packed, packed=True)
    pace.took(PLAIN, PLAIN / plain, packed=False)
    return pace


def test_a_quick_wire_is_measured_until_the_time_says_something() -> None:
    pace, amounts = Pace(Effort()), []
    while not pace.packs:
        amounts.append(pace.amount)
        pace.took(pace.amount, pace.amount / 1e9, packed=False)
    assert amounts == [FIRST * MORE**step for step in range(4)]


@pytest.mark.parametrize(
    ("plain", "packed", "rounds"), [(3e6, 2e6, 1), (3e6, 1e6, SELDOM), (2e6, 3e6, 1), (1e6, 3e6, SELDOM)]
)
def test_now_and_then_the_other_way_has_a_turn(plain: float, packed: float, rounds: int) -> None:
    """For as much as a trial, and the more rarely the less likely it is to be faster."""
    pace, since, quicker = settled(plain, packed), 0, packed > plain
    while pace.packs == quicker:
        assert pace.amount == (PACKED if quicker else PLAIN)
        pace.took(pace.amount, pace.amount / max(plain, packed), packed=quicker)
        since += PACKED if quicker else PLAIN
    assert TRIAL * OFTEN * rounds - PLAIN <= since <= TRIAL * OFTEN * rounds + PLAIN
    assert pace.amount == TRIAL
    pace.took(TRIAL, TRIAL / 9e6, packed=not quicker)
    assert pace.prefers_packed != quicker


def test_what_does_not_pay_has_had_its_turn() -> None:
    pace = Pace(Effort(request=1.0))
    pace.took(FIRST, FIRST / SLOW, packed=False)
    assert pace.packs
    assert not pace.pays(MIB, MIB - 100)
    assert (pace.packs, pace.amount) == (False, PLAIN)
    pace.took(PLAIN, PLAIN / SLOW, packed=False)
    assert pace.packs and pace.pays(MIB, 100)


SAID = Effort(0.1, 1 / SLOW)
"""of a board behind a wire of 10 MB/s, so that compression is ruled out"""


def doubted() -> tuple[Pace, float]:
    """As much has been sent uncompressed as it takes, in some seconds, until the board is no longer believed."""
    pace, gone = Pace(SAID), 0.0
    while not pace.packs:
        gone += pace.amount / 10e6
        pace.took(pace.amount, pace.amount / 10e6, packed=False)
    return pace, gone


@pytest.mark.parametrize("unpacks", [QUICK, SLOW])
def test_a_board_that_was_busy_when_it_measured_itself_is_tried(unpacks: float) -> None:
    """Once a trial costs little compared with what was sent, whatever the board says; its result decides."""
    pace, gone = doubted()
    trial = SAID.request + TRIAL * SAID.byte
    assert BELIEVED * trial <= gone <= BELIEVED * trial + PLAIN / 10e6
    assert (pace.amount, pace.pays(MIB, MIB // 2)) == (TRIAL, True)
    pace.took(TRIAL, SAID.request + TRIAL / 2 / 10e6 + TRIAL / unpacks, packed=True)
    assert pace.prefers_packed == pace.packs == (unpacks == QUICK)


def test_noise_is_not_tried_even_then() -> None:
    pace, _ = doubted()
    assert not pace.pays(MIB, MIB)
    assert (pace.packs, pace.amount) == (False, PLAIN)


def test_a_small_turn_is_measured_as_if_it_were_full() -> None:
    """Its request costs as much as that of a large one."""
    pace = Pace(Effort(request=1.0))
    pace.took(FIRST, FIRST / 4e6, packed=False)
    pace.took(TRIAL, 1.0 + TRIAL / 10e6, packed=True)  # 2.95 MB/s, but a full turn has 6.3
    assert pace.prefers_packed
