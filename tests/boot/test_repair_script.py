# SPDX-License-Identifier: Apache-2.0
"""Repair of a slot from the other one, by the initramfs's script under the host's shell: see repair_stage.py."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import pytest
from repair_stage import BLOCK, BLOCKS, Board, set_stage, spoil

from erofs_edge.disk import slots
from erofs_edge.verity.tree import append


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return set_stage(tmp_path)


def test_what_is_right_is_left_alone(board: Board) -> None:
    assert board.mend() == ["erofs-edge: slot b has failed before, but nothing in it is damaged"]
    assert board.a == board.b == board.whole


def test_damaged_blocks_come_from_the_other_slot(board: Board) -> None:
    for block, count in ((0, 1), (15, 2), (BLOCKS - 1, 1)):
        spoil(board.b, block, count)
    assert board.mend() == ["erofs-edge: 4 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == board.whole


def test_each_slot_may_have_damage_of_its_own(board: Board) -> None:
    spoil(board.b, 10, 3)
    spoil(board.a, 20, 100)
    damaged = bytes(board.a)
    assert board.mend() == ["erofs-edge: 3 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == damaged, "the other slot is only read"


def test_what_both_have_lost_is_lost_and_the_rest_is_repaired(board: Board) -> None:
    spoil(board.b, 10, 5)
    spoil(board.a, 12)
    assert board.mend() == [
        "erofs-edge: 4 blocks of slot b were repaired from slot a",
        "erofs-edge: slot b is damaged and cannot be repaired",
    ]
    wrong = [n for n in range(BLOCKS) if board.b[n * BLOCK :][:BLOCK] != board.whole[n * BLOCK :][:BLOCK]]
    assert wrong == [12]


@pytest.mark.parametrize("block", range(4))
def test_a_damaged_tree_comes_from_the_other_slot(board: Board, block: int) -> None:
    """Its root block, and each block below it; data under it is damaged as well."""
    spoil(board.b, board.info.hash_start_block + block)
    spoil(board.b, 3)
    lines = board.mend()
    assert lines == ["erofs-edge: 2 blocks of slot b were repaired from slot a"]
    assert board.b == board.whole and board.a == board.whole


def test_another_system_in_the_other_slot_repairs_nothing(board: Board) -> None:
    other = board.root / "other"
    other.write_bytes(random.Random(8).randbytes(BLOCKS * BLOCK))
    append(other)
    board.a[:] = other.read_bytes().ljust(len(board.whole), b"\0")
    spoil(board.b, 5)
    before = bytes(board.b)
    assert board.mend() == ["erofs-edge: slot b is damaged and cannot be repaired"]
    assert board.b == before


def test_a_board_with_one_slot_says_that_it_is_damaged(board: Board) -> None:
    spoil(board.b, 5)
    assert board.mend("b") == ["erofs-edge: slot b is damaged and cannot be repaired"]


def test_the_starts_that_are_left_come_from_the_slot_state(board: Board) -> None:
    state = slots.SlotState(("B", "A"), {"A": 4, "B": 1})
    misc = board.root / "misc"
    misc.write_bytes(slots.encode_state(state))
    script = f". {board.root}/repair; starts_left b {shlex.quote(str(misc))}; starts_left a {shlex.quote(str(misc))}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "4"]
