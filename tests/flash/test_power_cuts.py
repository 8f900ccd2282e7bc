# SPDX-License-Identifier: Apache-2.0
"""The power fails at every write and every flush; the board starts the old system or the new one, and can continue.

`make power-cuts` runs a million cuts; here are some ten thousand, the same ones each time.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from hush import Machine
from sweep import SCENARIOS, Board, Outcome, quiet, started, sweep

from erofs_edge.boot import script
from erofs_edge.disk import slots
from erofs_edge.flash.execute import flash
from erofs_edge.flash.image import Image
from erofs_edge.flash.prepare import Wish, prepare
from erofs_edge.manifest.model import Board as BoardFile
from erofs_edge.manifest.model import Boot, Disk, PackageFile, Partition
from erofs_edge.simulator.boot import System, whole
from erofs_edge.simulator.disk import CACHES, SimulatedDisk, Write
from erofs_edge.simulator.images import Sizes, disk_image, opened
from erofs_edge.simulator.power import cut, cuts
from erofs_edge.simulator.target import SimulatedTarget

CUTS = 149  # of each scenario and cache: 69 of them, 10,281 in all


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(tmp_path_factory.mktemp("board"))


@pytest.mark.parametrize(("kind", "transport"), SCENARIOS)
def test_no_cut_leaves_a_board_that_does_not_start(kind: str, transport: str, board: Board) -> None:
    for cache in CACHES:
        outcome, seed = Outcome(), 0
        while outcome.cuts < CUTS:
            seed += 1
            sweep(board, kind, transport, cache, seed, outcome, every=2)
        assert outcome.bricked == []
        assert outcome.unfinished == []
        assert outcome.cuts == outcome.old + outcome.new + outcome.nothing
        if kind in ("update", "switch"):
            assert outcome.old and outcome.new and not outcome.nothing


def test_an_update_in_place_is_what_the_sweep_finds(tmp_path: Path) -> None:
    """A board with one slot has nothing to fall back to: the sweep detects that, and that the board can be repaired."""
    one = Sizes(slots=("a",))
    images = [disk_image(tmp_path / f"v{n}.img", n, one) for n in (1, 2)]
    before = images[0].read_bytes()
    disk = SimulatedDisk(bytearray(before), log=[])
    target = SimulatedTarget(disk)
    flash((todo := prepare(images[1], target, Wish(), quiet)).plan, target, quiet, found=todo.found)
    media = [medium for _, medium in cuts(before, disk.log or [], "reordered", Random(1))]
    assert [started(medium) is None for medium in media].count(True) >= 3
    for medium in media:
        again = SimulatedTarget(SimulatedDisk(medium))
        flash((todo := prepare(images[1], again, Wish(), quiet)).plan, again, quiet, found=todo.found)
        assert (mended := started(again.disk.memory)) is not None
        assert mended.slot == "A"


def test_a_cache_that_lies(board: Board) -> None:
    """Flushes do nothing, any write may be lost at a cut: the old system still starts, and repeating the command
    completes."""
    random = Random(7)
    before = board.before("update", random)
    for _ in range(10):
        disk = SimulatedDisk(bytearray(before), log=[], lies=True)
        board.run("update", disk, "block")
        for _, medium in cuts(before, disk.log or [], "torn", random):
            found = started(medium)
            assert found is not None and found.root_hash in board.roots.values()
            again = SimulatedDisk(medium)
            board.run("update", again, "block")
            assert (mended := started(again.memory)) is not None
            assert mended.root_hash == board.roots[2]


def test_two_cuts_in_a_row(board: Board) -> None:
    """The repeated command is interrupted, too, again and again."""
    random = Random(3)
    for cache in CACHES:
        medium = board.before("update", random)
        for _ in range(60):
            disk = SimulatedDisk(bytearray(medium), log=[])
            board.run("update", disk, "block")
            log = disk.log or []
            if not log:
                break
            medium = cut(medium, log, random.randrange(len(log)), cache, random)
            found = started(medium)
            assert found is not None and found.root_hash in board.roots.values()


def _script(board: Board) -> str:
    """Return the boot script for the layout of the samples."""
    partitions = {
        "boot": Partition(size=Sizes().boot, slots=["a", "b"], content="fit"),
        "misc": Partition(size=Sizes().misc, content="slot-state"),
    }
    u_boot = PackageFile(package="u-boot-qemu", path="/u-boot.bin")
    return script.boot_script(BoardFile(board="lab", disk=Disk(partitions=partitions), boot=Boot(u_boot=u_boot)))


def _start_with_the_script(board: Board, text: str, medium: bytearray) -> tuple[str, bytes] | None:
    """Run U-Boot's script on this medium, then the initramfs's check; a wrong system restarts it."""
    sectors = {name: (start // 512, (end - start) // 512) for name, (start, end) in board.places.items()}

    def named(loaded: bytes) -> System | None:
        return opened(lambda offset, length: loaded[offset : offset + length], len(loaded))

    for _ in range(12):
        machine = Machine(medium, sectors, lambda loaded: named(loaded) is not None)
        machine.run(text)
        if machine.booted is None:
            return None
        found = re.search(r"erofs_edge\.slot=(\w+)", machine.env["bootargs"])
        assert found is not None
        slot = found[1]
        (start, end), (at, stop) = board.places[f"boot_{slot}"], board.places[f"system_{slot}"]
        system = named(bytes(medium[start:end]))
        assert system is not None
        if whole(lambda offset, length, at=at: bytes(medium[at + offset : at + offset + length]), stop - at, system):
            return slot.upper(), system.root_hash
    return None


def test_u_boots_script_decides_as_the_model_does(board: Board) -> None:
    text, random = _script(board), Random(5)
    for kind in ("update", "switch", "repair"):
        before = board.before(kind, random)
        disk = SimulatedDisk(bytearray(before), log=[])
        board.run(kind, disk, "block")
        for cache in CACHES:
            for _, medium in cuts(before, disk.log or [], cache, random):
                wanted = started(medium)
                assert wanted is not None
                assert _start_with_the_script(board, text, medium) == (wanted.slot, wanted.root_hash)
                after = slots.decode_state(bytes(medium[board.places["misc"][0] :][: slots.STATE_SIZE]))[0]
                assert after == wanted.state


def test_what_each_model_of_a_cache_may_leave() -> None:
    log = [Write(0, b"a" * 1024), Write(0, b""), Write(1024, b"b" * 1024), Write(512, b"c" * 512)]
    before = bytes(2048)

    def media(cache: str, count: int) -> set[bytes]:
        random = Random(1)
        found = {bytes(cut(before, log, count, cache, random)) for _ in range(300)}  # type: ignore[arg-type]
        return {medium[0:1] + medium[512:513] + medium[1024:1025] + medium[1536:1537] for medium in found}

    nothing = b"\0"
    assert media("write-through", 0) == {nothing * 4, b"a" + nothing * 3, b"aa\0\0"}
    assert media("write-through", 2) == {b"aa\0\0", b"aab\0", b"aabb"}
    assert media("write-through", 4) == {b"acbb"}
    assert media("reordered", 1) == {nothing * 4, b"a\0\0\0", b"\0a\0\0", b"aa\0\0"}
    assert media("reordered", 4) == {bytes([*b"a", x, y, z]) for x in b"ac" for y in b"\0b" for z in b"\0b"}
    assert all(medium[0:1] == b"a" for medium in media("torn", 4))
    assert len(media("torn", 4)) > len(media("reordered", 4))


def test_the_image_is_not_the_boards_own(board: Board) -> None:
    """The samples are what they claim to be: two builds with one layout that differ in few blocks."""
    with Image(board.images[1]) as first, Image(board.images[2]) as second:
        assert first.table() != second.table()
        start, end = board.places["system_a"]
        pairs = [(first.read(at, 4096), second.read(at, 4096)) for at in range(start, end, 4096)]
    assert 3 <= sum(old != new for old, new in pairs) <= 6
