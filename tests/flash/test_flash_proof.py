# SPDX-License-Identifier: Apache-2.0
"""A board proves in one exchange that it holds all of some regions; small holes inside the data cost no question."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import pytest
from memory_board import Board, Disk

from erofs_edge.errors import DeviceRefusedError, VerificationError
from erofs_edge.flash import proof
from erofs_edge.flash.comparing import Range
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.proof import hold
from erofs_edge.flash.provision import ProvisionTarget
from erofs_edge.flash.readback import Expected, check
from erofs_edge.flash.survey import SMALL, survey
from erofs_edge.flash.target import Ability
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.target import SimulatedTarget
from erofs_edge.threads import Threads
from erofs_edge.transport.nbd.connect import Connection

SAYS = "erofs-edge board|is 1|.||blake2b"
MIB = 1 << 20
DATA = (
    (MIB, MIB + 8192), (MIB + 12288, 2 * MIB), (2 * MIB + SMALL, 4 * MIB), (5 * MIB + 4096, 6 * MIB - 300),
)  # fmt: skip
SYSTEM, BOOT = Region("system", MIB, 10 * MIB, DATA), Region("boot", 10 * MIB, 12 * MIB, ((10 * MIB, 11 * MIB),))


def image_of(path: Path) -> bytearray:
    """An image of these regions; returns its content."""
    content = bytearray(12 * MIB)
    for start, end in (*DATA, *BOOT.data):
        content[start:end] = random.Random(start).randbytes(end - start)
    path.write_bytes(content)
    return content


def board_with(content: bytearray) -> tuple[Board, Disk, ProvisionTarget]:
    board = Board(bytes(content), says=SAYS)
    disk = Disk(board)
    return board, disk, ProvisionTarget(cast("Connection", disk), cast("Connection", board))


def test_one_exchange_proves_everything(tmp_path: Path) -> None:
    content = image_of(tmp_path / "image")
    board, _, target = board_with(content)
    with Image(tmp_path / "image") as image:
        assert hold([SYSTEM, BOOT], image, target)
    assert board.flushed == 1
    assert board.asked == [
        f"hash {MIB} {3 * MIB} blake2b",
        f"hash {5 * MIB + 4096} {MIB - 4096 - 300} blake2b",
        f"hash {10 * MIB} {MIB} blake2b",
        f"zeros {4 * MIB} {MIB + 4096}",
        f"zeros {6 * MIB - 300} {4 * MIB + 300}",
        f"zeros {11 * MIB} {MIB}",
    ]


@pytest.mark.parametrize("most", [MIB, 4096, 3 * MIB])
def test_what_is_wrong_anywhere_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int) -> None:
    """In data, in small and in large holes; however many exchanges there are."""
    monkeypatch.setattr("erofs_edge.flash.provision.PROOF", max(most, 65536))
    monkeypatch.setattr(proof, "DATA_AT_ONCE", most)
    monkeypatch.setattr(proof, "ZEROS_AT_ONCE", most)
    content = image_of(tmp_path / "image")
    board, _, target = board_with(content)
    with Image(tmp_path / "image") as image:
        assert hold([SYSTEM, BOOT], image, target)
        assert board.flushed > 1 and len(board.asked) == len(set(board.asked))
        for at in (MIB, MIB + 9000, MIB + 12288, 3 * MIB, 4 * MIB, 6 * MIB - 301, 6 * MIB - 300, 12 * MIB - 1):
            wrong = content.copy()
            wrong[at] ^= 1
            assert not hold([SYSTEM, BOOT], image, board_with(wrong)[2]), at


def test_another_build_is_noticed_without_a_question(tmp_path: Path) -> None:
    """Its first or its last blocks differ."""
    content = image_of(tmp_path / "image")
    for at in (MIB, 6 * MIB - 301, 10 * MIB + 5):
        wrong = content.copy()
        wrong[at] ^= 1
        board, _, target = board_with(wrong)
        with Image(tmp_path / "image") as image:
            assert not hold([SYSTEM, BOOT], image, target)
        assert board.asked == []


def test_what_was_written_is_proved_at_once_or_looked_for(tmp_path: Path) -> None:
    content = image_of(tmp_path / "image")
    board, _, target = board_with(content)
    target.flush()
    with Image(tmp_path / "image") as image, Threads(1) as pool:
        check(SYSTEM, image, target, Expected(), pool, lambda done, place: None)
        assert (board.flushed, board.asked[0]) == (1, "medium")
        content[3 * MIB + 1] ^= 1
        content[MIB + 8200] ^= 1
        with pytest.raises(VerificationError, match=r"in 2 block\(s\) of 4096 bytes, at byte 0x102000, 0x300000"):
            check(SYSTEM, image, board_with(content)[2], Expected(), pool, lambda done, place: None)


@pytest.mark.parametrize("seed", range(20))
def test_small_holes_are_hashed_with_their_data(tmp_path: Path, seed: int) -> None:
    """The same is found as by reading: blocks of data, and blocks of holes, large ones and small ones."""
    order = random.Random(seed)
    places = sorted(order.sample(range(1, 6 * MIB // 4096), 2 * order.randrange(1, 9)))
    data: tuple[Range, ...] = tuple((a * 4096, b * 4096) for a, b in zip(places[::2], places[1::2], strict=True))
    region = Region("system", 0, 6 * MIB, data)
    content = bytearray(region.size)
    for start, end in data:
        content[start:end] = order.randbytes(end - start)
    (tmp_path / "image").write_bytes(content)
    for at in order.sample(range(region.size), order.choice([1, 5, 50])):
        content[at] ^= 1
    with Image(tmp_path / "image") as image:
        found, read = (
            survey(region, image, SimulatedTarget(SimulatedDisk(content), abilities))
            for abilities in (Ability.READ | Ability.HASH, Ability.READ)
        )
    assert sorted(found.write) == sorted(read.write)
    assert sum(end - start for start, end in found.zero) == sum(end - start for start, end in read.zero)
    assert blocks(found.zero) == blocks(read.zero)


def blocks(ranges: object) -> list[int]:
    return sorted(at for start, end in cast("list[Range]", ranges) for at in range(start, end, 4096))


def test_who_writes_is_said_with_the_first_question(tmp_path: Path) -> None:
    """Before anything is written; who is refused has written nothing."""
    content = image_of(tmp_path / "image")
    board, disk, target = board_with(content)
    target.claim()
    assert board.asked == []
    target.digests([(0, 512)])
    assert board.flushed == 1 and [item.split()[0] for item in board.asked] == ["hold", "hash"]
    target.close()
    acts: list[tuple[str, tuple[object, ...]]] = [
        ("write", (0, bytes(512))),
        ("zero", (0, 512)),
        ("send", (0, 0, 0, MIB)),
        ("copy", (0, 4096, 512)),
        ("digests", ([(0, 512)],)),
    ]
    for act, arguments in acts:
        board, disk, target = board_with(content)
        board.holder = "held somebody@elsewhere:7"
        target.claim()
        with pytest.raises(DeviceRefusedError, match="another host is writing to this board: somebody@elsewhere:7"):
            getattr(target, act)(*arguments)
        assert disk.written == 0
        target.close()
