# SPDX-License-Identifier: Apache-2.0
"""A disk with slots of which a copy of the partition table is damaged: it is mended with the next write."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result
from faulty_target import FaultyTarget
from sweep import TRANSPORTS, Board, quiet, started

from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt
from erofs_edge.errors import PartialWriteError, VerificationError
from erofs_edge.flash.execute import flash
from erofs_edge.flash.fastboot_target import FastbootTarget
from erofs_edge.flash.image import Image
from erofs_edge.flash.prepare import Wish, prepare, prepare_check
from erofs_edge.flash.slot_state import Record
from erofs_edge.simulator.disk import CACHES, SimulatedDisk
from erofs_edge.simulator.images import disk_image
from erofs_edge.simulator.power import cuts
from erofs_edge.simulator.target import SimulatedTarget

HEAD = 34 * 512
PLACES = {
    "first header": (512 + 60, "first", "gpt"),
    "first entries": (1024 + 60, "first", "gpt"),
    "second header": (-512 + 60, "second", "gpt backup"),
    "second entries": (-33 * 512 + 60, "second", "gpt backup"),
    "sector 0": (511, "mbr", "gpt"),
}


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def record(*arguments: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(run(*arguments, "--json").stdout)
    return found


def spoil(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0xFF
    path.write_bytes(raw)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v1.img", 1)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v2.img", 2)


@pytest.fixture
def card(v1: Path, tmp_path: Path) -> Path:
    card = tmp_path / "card.img"
    run("flash", v1, "--to", card)
    return card


@pytest.mark.parametrize("place", PLACES)
def test_looking_reports_it_and_changes_nothing(place: str, card: Path, v1: Path, v2: Path) -> None:
    offset, which, region = PLACES[place]
    spoil(card, offset)
    before = card.read_bytes()
    for arguments in (("flash", v2, "--to", card, "--plan"), ("flash", v1, "--to", card, "--verify-only")):
        shown = run(*arguments)
        assert shown.stderr.count("is damaged") == 1, arguments
        assert "writing a slot, or --repair, mends it" in shown.stderr
        assert f"\n{region}  " in shown.stdout
        found = record(*arguments)
        assert found["damaged_table"] == which
        assert isinstance(found["regions"], list)
        assert [one["name"] for one in found["regions"]] == [*_names(found)[:-1], region]
        assert found["bytes_written"] == sum(one["write"] + one["zero"] for one in found["regions"])
        assert found["regions"][-1]["write"] in (512, 16384)
    seen = run("slots", "show", card).stderr
    assert ("is damaged" in seen) == (which != "mbr")  # without an image, nobody knows what belongs in sector 0
    assert record("slots", "show", card)["damaged_table"] == (None if which == "mbr" else which)
    assert card.read_bytes() == before


def _names(found: dict[str, object]) -> list[str]:
    regions = found["regions"]
    assert isinstance(regions, list)
    return [one["name"] for one in regions]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["update", "right", "repair", "full"])
def test_writing_mends_it(place: str, how: str, card: Path, v1: Path, v2: Path) -> None:
    offset, which, region = PLACES[place]
    good = card.read_bytes()
    spoil(card, offset)
    image, options = (v1 if how in ("right", "repair") else v2), [f"--{how}"] * (how in ("repair", "full"))
    found = record("flash", image, "--to", card, *options)
    assert found["damaged_table"] == which
    regions = found["regions"]
    assert isinstance(regions, list)
    last = regions[-1]
    assert last["name"] == region
    assert last["written"] == last["verified"] == last["size"] in (512, 16384)
    if how in ("right", "repair"):
        assert found["bytes_written"] == last["size"]
        assert card.read_bytes() == good
    assert card.read_bytes()[:HEAD] == good[:HEAD]
    assert card.read_bytes()[-HEAD:] == good[-HEAD:]
    again = record("flash", image, "--to", card)
    assert (again["bytes_written"], again["damaged_table"]) == (0, None)


def test_it_is_shown_to_people_too(card: Path, v1: Path) -> None:
    spoil(card, PLACES["first header"][0])
    shown = run("flash", v1, "--to", card)
    assert "warning: the first partition table is damaged, and the second one is used" in shown.stderr
    assert "Writing 'gpt' (1 KB)" in shown.stderr
    assert "\ngpt  " in shown.stdout
    shown = run("flash", v1, "--to", card)
    assert "damaged" not in shown.stderr
    assert "gpt" not in shown.stdout


def test_a_table_that_is_written_again_is_not_reported(card: Path, v1: Path) -> None:
    good = card.read_bytes()[:HEAD]
    spoil(card, PLACES["first header"][0])
    assert "damaged" not in run("flash", v1, "--to", card, "--whole").stderr
    assert card.read_bytes()[:HEAD] == good


def test_what_cannot_be_mended_safely_is_said(card: Path, v1: Path) -> None:
    """The card was written as if it were larger, and a table of before is at its end."""
    raw = bytearray(card.read_bytes())
    raw[:HEAD] = larger(raw)
    card.write_bytes(raw)
    for arguments in (("flash", v1, "--to", card, "--plan"), ("flash", v1, "--to", card)):
        shown = run(*arguments)
        assert "it cannot be mended safely; flash --whole writes both anew" in shown.stderr
        assert "gpt" not in shown.stdout
    found = record("flash", v1, "--to", card)
    assert (found["damaged_table"], found["bytes_written"]) == ("first", 0)
    assert card.read_bytes()[:HEAD] == raw[:HEAD]


def larger(raw: bytes | bytearray) -> bytes:
    """The start of the same disk with 1 MiB more."""
    table = gpt.decode(lambda offset, length: bytes(raw[offset : offset + length]), len(raw), 512)
    return gpt.encode(table._replace(sectors=table.sectors + 2048))[0]


def test_a_disk_that_has_grown_keeps_its_own_table(card: Path, v1: Path, v2: Path) -> None:
    """The device has given its data partition the rest of a larger card; both copies are its own."""
    raw = bytearray(card.read_bytes())
    table = gpt.decode(lambda offset, length: bytes(raw[offset : offset + length]), len(raw), 512)
    *others, data = table.partitions
    grown = table._replace(
        sectors=table.sectors + 2048, partitions=(*others, data._replace(last_lba=data.last_lba + 2048))
    )
    head, tail = gpt.encode(grown)
    raw = bytearray(head) + raw[len(head) :] + bytes(2048 * 512)
    raw[-len(tail) :] = tail
    for start in (512, len(raw) - len(tail)):
        damaged = bytearray(raw)
        damaged[start : start + len(tail)] = bytes(len(tail))
        card.write_bytes(damaged)
        run("flash", v2, "--to", card)
        assert card.read_bytes()[: len(head)] == head
        assert card.read_bytes()[-len(tail) :] == tail


@pytest.mark.parametrize("place", ["first header", "first entries"])
def test_a_larger_disk_has_its_second_copy_where_the_image_ends(place: str, card: Path, v1: Path, v2: Path) -> None:
    good = card.read_bytes() + bytes(3 << 20)
    card.write_bytes(good)
    spoil(card, PLACES[place][0])
    assert record("flash", v1, "--to", card, "--verify-only")["damaged_table"] == "first"
    assert record("flash", v2, "--to", card)["slot"] == "b"
    assert card.read_bytes()[:HEAD] == good[:HEAD]
    assert card.read_bytes()[v1.stat().st_size - HEAD :] == good[v1.stat().st_size - HEAD :]
    assert record("flash", v2, "--to", card)["damaged_table"] is None


def test_a_larger_disk_whose_table_was_erased_is_blank(card: Path, v1: Path, v2: Path) -> None:
    good = card.read_bytes() + bytes(3 << 20)
    card.write_bytes(good[:512] + bytes(HEAD - 512) + good[HEAD:])
    found = record("flash", v2, "--to", card)
    assert (found["slot"], found["damaged_table"]) == (None, None)
    assert card.read_bytes()[: v1.stat().st_size] == v2.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("place", PLACES)
def test_sgdisk_finds_no_fault_in_it(
    place: str, card: Path, v2: Path, oracle: Callable[[str], str]
) -> None:  # fmt: skip
    def said() -> str:
        done = subprocess.run([oracle("sgdisk"), "-v", card], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).lower()

    before = said()
    spoil(card, PLACES[place][0])
    assert said() != before
    run("flash", v2, "--to", card)
    assert said() == before
    assert not any(word in before for word in ("invalid", "damaged", "corrupt"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(tmp_path_factory.mktemp("board"))


WITH_TABLES = [name for name in TRANSPORTS if name not in ("fastboot", "u-boot")]


@pytest.mark.parametrize("transport", WITH_TABLES)
@pytest.mark.parametrize("which", ["first", "second", "both sectors"])
def test_no_cut_leaves_a_disk_without_a_table(transport: str, which: str, board: Board) -> None:
    random = Random(f"{transport} {which}")
    good = board.before("update", random)
    before = bytearray(good)
    if which == "second":
        before[-33 * 512 :] = random.randbytes(33 * 512)
    else:
        before[0 if which == "both sectors" else 512 : HEAD] = bytes(HEAD - (0 if which == "both sectors" else 512))
    disk = SimulatedDisk(bytearray(before), log=[])
    board.run("update", disk, transport)
    assert (disk.memory[:HEAD], disk.memory[-33 * 512 :]) == (good[:HEAD], good[-33 * 512 :])
    log, seen = disk.log or [], set()
    for cache in CACHES:
        for count, medium in cuts(bytes(before), log, cache, random):
            found = started(medium)
            assert found is not None and found.root_hash in board.roots.values(), (cache, count)
            seen.add(found.root_hash)
            if transport != "serial" or count % 10 == 0:
                again = SimulatedDisk(medium)
                board.run("update", again, transport)
                assert (again.memory[:HEAD], again.memory[-33 * 512 :]) == (good[:HEAD], good[-33 * 512 :])
                ended = started(again.memory)
                assert ended is not None and ended.root_hash == board.roots[2]
    assert seen == set(board.roots.values())


def test_the_table_is_mended_after_everything_else(board: Board) -> None:
    """Entries, a flush, the header, a flush; before them the slot is opened."""
    before = board.before("update", Random(1))
    before[512:HEAD] = bytes(HEAD - 512)
    disk = SimulatedDisk(before, log=[])
    board.run("update", disk, "block")
    log = disk.log or []
    assert [(one.offset, len(one.data)) for one in log[-4:]] == [(1024, 16384), (0, 0), (512, 512), (0, 0)]
    start, end = board.places["misc"]
    assert start <= log[-6].offset < end and log[-5].is_flush


def prepared_on(target: FaultyTarget, image: Path, how: str) -> None:
    found = prepare(image, target, Wish(), quiet)
    assert found.plan.mend is not None and not found.nothing_to_do
    flash(found.plan, target, quiet, found=found.found, verify=how == "verified")


def test_a_disk_that_does_not_take_it(card: Path, v1: Path) -> None:
    spoil(card, PLACES["first header"][0])
    target = FaultyTarget(0)
    target.memory, target.cut = bytearray(card.read_bytes()), 0
    with pytest.raises(PartialWriteError, match="writing 'gpt' failed"):
        prepared_on(target, v1, "verified")
    assert not target.finished


def test_a_disk_that_reads_it_back_differently(card: Path, v1: Path) -> None:
    class Forgetful(FaultyTarget):
        def write(self, offset: int, data: bytes | memoryview) -> int:
            return len(data)

    spoil(card, PLACES["second header"][0])
    target = Forgetful(0)
    target.memory = bytearray(card.read_bytes())
    with pytest.raises(VerificationError, match="'gpt backup' reads back differently"):
        prepared_on(target, v1, "verified")
    prepared_on(target, v1, "not verified")
    assert target.finished


def test_a_second_copy_that_cannot_be_read(card: Path, v1: Path) -> None:
    """The rest works as before; whether such a sector can be written is not tried."""
    target = FaultyTarget(0, bad=card.stat().st_size - 10)
    target.memory = bytearray(card.read_bytes())
    found = prepare_check(v1, target, None, quiet)
    assert found.nothing_to_do
    assert found.plan.mend is not None and found.plan.mend.damaged == "second" and not found.plan.mend.writes
    flash(found.plan, target, quiet, found=found.found)
    assert target.log == []


def test_a_console_is_asked_for_checksums(board: Board) -> None:
    """Over a serial line, reading a table takes seconds: the second copy is not read if it is right."""
    disk = SimulatedDisk(board.before("update", Random(1)))
    target = board.target(disk, "serial")
    target.partitions()
    before = target.bytes_on_wire or 0
    assert target.table_damage() is None
    assert (target.bytes_on_wire or 0) - before < 2000


def test_a_device_that_makes_its_own_table_does_not_reveal_it(board: Board) -> None:
    disk = SimulatedDisk(board.before("update", Random(1)))
    disk.memory[512] ^= 1
    for transport in ("fastboot", "u-boot"):
        target = board.target(disk, transport)
        assert isinstance(target, FastbootTarget)
        assert target.partitions()
        assert target.table_damage() is None


@pytest.mark.parametrize("kept", [1, 2])
def test_a_whole_disk_that_was_interrupted_is_not_taken_for_a_damaged_one(kept: int, board: Board) -> None:
    """Its old table would otherwise still be at its end, with the slots of a system that is half overwritten."""
    before = board.before("switch", Random(kept))
    disk = SimulatedDisk(bytearray(before), log=[])
    target = SimulatedTarget(disk)
    flash(prepare(board.images[kept], target, Wish(whole=True), quiet).plan, target, quiet)
    log = disk.log or []
    erased = next(index for index, one in enumerate(log) if index > 2 and one.is_flush) + 1
    first = next(index for index, one in enumerate(log) if one.offset == board.places["boot_a"][0])
    assert erased <= first
    with Image(board.images[kept]) as image:
        tail = image.size - 33 * 512
    done = next(index for index, one in enumerate(log) if one.offset <= tail < one.offset + len(one.data) and index > 4)
    for cache in CACHES:
        for count, medium in cuts(bytes(before), log, cache, Random(2)):
            again = SimulatedTarget(SimulatedDisk(medium))
            found = prepare(board.images[kept], again, Wish(resume=True), quiet)
            if erased <= count < done:
                assert started(medium) is None
                assert found.plan.table and found.state is None, (cache, count)
            else:
                assert isinstance(found.state, Record) or found.plan.table
            flash(found.plan, again, quiet, found=found.found)
            assert (mended := started(again.disk.memory)) is not None
            assert mended.root_hash in board.roots.values()
