# SPDX-License-Identifier: Apache-2.0
"""Updating one slot of a disk that has the layout already: which slot, only the differences, and the state before and
after."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.disk import journal, slots
from erofs_edge.disk.slots import SlotState
from erofs_edge.errors import VerificationError
from erofs_edge.flash import slot_state
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.prepare import prepare_repair
from erofs_edge.flash.target import Ability
from erofs_edge.flash.update import Layout, read_layout
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.images import Sizes, disk_image
from erofs_edge.simulator.target import SimulatedTarget


def run(image: Path, card: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["flash", str(image), "--to", str(card), *arguments])


def flash(image: Path, card: Path, *arguments: str) -> dict[str, object]:
    result = run(image, card, "--json", *arguments)
    assert result.exit_code == 0, result.output
    record: dict[str, object] = json.loads(result.stdout)
    return record


def layout_of(path: Path) -> Layout:
    with Image(path) as image:
        found = read_layout(image)
    assert found is not None
    return found


def part(path: Path, name: str) -> bytes:
    start, end = layout_of(path).places[name]
    return path.read_bytes()[start:end]


def state(path: Path) -> SlotState:
    return slots.decode_state(part(path, "misc"))[0]


def under_way(path: Path) -> journal.Journal | None:
    raw = part(path, "misc")
    return journal.decode(lambda offset, length: raw[offset : offset + length])


def poke(path: Path, name: str, offset: int, data: bytes) -> None:
    start, _ = layout_of(path).places[name]
    with path.open("r+b") as file:
        file.seek(start + offset)
        file.write(data)


def set_state(path: Path, new: SlotState) -> None:
    poke(path, "misc", 0, slots.encode_state(new))


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v1.img", 1)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return disk_image(tmp_path / "v2.img", 2)


@pytest.fixture
def card(v1: Path, tmp_path: Path) -> Path:
    """A card with v1 whose slot a works well, and something on the data partition."""
    card = tmp_path / "card.img"
    flash(v1, card)
    set_state(card, slots.mark(state(card), "a", "good"))
    poke(card, "data", 0, b"what the user keeps")
    return card


def test_the_other_slot_is_written_and_started_next(card: Path, v1: Path, v2: Path) -> None:
    before = card.read_bytes()
    record = flash(v2, card)
    assert record["slot"] == "b"
    for base in ("boot", "system"):
        assert part(card, f"{base}_b") == part(v2, f"{base}_a")
        assert part(card, f"{base}_a") == part(v1, f"{base}_a")
    assert part(card, "data").startswith(b"what the user keeps")
    assert state(card) == SlotState(("B", "A"), {"A": 4, "B": 3})
    assert under_way(card) is None
    start = layout_of(card).places["boot_a"][0]
    assert card.read_bytes()[:start] == before[:start]  # the table


def test_only_blocks_that_differ_are_written(card: Path, v1: Path, v2: Path) -> None:
    record = flash(v2, card)
    wanted = 0
    for name in ("boot_a", "system_a"):
        old, new = part(v1, name), part(v2, name)
        wanted += sum(4096 for at in range(0, len(new), 4096) if old[at : at + 4096] != new[at : at + 4096])
    assert record["bytes_written"] == wanted
    assert record["bytes_total"] == v2.stat().st_size
    assert isinstance(record["seconds"], float)


def test_what_is_right_is_left_alone(card: Path, v1: Path, v2: Path) -> None:
    for image in (v1, v2):
        flash(image, card)
        before = (card.read_bytes(), card.stat().st_mtime_ns)
        record = flash(image, card)
        assert record["bytes_written"] == 0
        assert record["slot"] is None
        assert (card.read_bytes(), card.stat().st_mtime_ns) == before


def test_full_writes_all_of_the_slot(card: Path, v1: Path) -> None:
    record = flash(v1, card, "--full")
    assert record["slot"] == "b"
    assert record["bytes_written"] >= len(part(v1, "boot_a").rstrip(b"\0")) + 9 * 4096
    assert state(card).order == ("B", "A")


def test_whole_takes_everything(card: Path, v2: Path) -> None:
    flash(v2, card, "--whole")
    assert card.read_bytes() == v2.read_bytes()


def test_back_and_forth(card: Path, v1: Path, v2: Path) -> None:
    flash(v2, card)
    set_state(card, slots.mark(state(card), "b", "good"))
    record = flash(v1, card)
    assert record["slot"] == "a"
    assert record["bytes_written"] == 0  # v1 is still there: only the state changes
    assert state(card) == SlotState(("A", "B"), {"A": 3, "B": 4})


def test_a_new_slot_that_failed_is_the_one_to_write(card: Path, v2: Path) -> None:
    flash(v2, card)
    set_state(card, slots.mark(state(card), "b", "bad"))  # it fell back to a
    record = flash(v2, card)
    assert record["slot"] == "b"
    assert state(card) == SlotState(("B", "A"), {"A": 4, "B": 3})


def test_a_new_slot_that_never_ran_is_written_again(card: Path, v2: Path, tmp_path: Path) -> None:
    v3 = disk_image(tmp_path / "v3.img", 3)
    flash(v2, card)
    assert flash(v3, card)["slot"] == "b"
    assert state(card) == SlotState(("B", "A"), {"A": 4, "B": 3})


def test_the_plan_touches_nothing(card: Path, v2: Path) -> None:
    before = (card.read_bytes(), card.stat().st_mtime_ns)
    plan = flash(v2, card, "--plan")
    assert plan["slot"] == "b"
    text = run(v2, card, "--plan")
    assert "), slot b\n" in text.stderr
    assert "the rest is already right; nothing was changed" in text.stderr
    assert (card.read_bytes(), card.stat().st_mtime_ns) == before
    assert plan["bytes_written"] == flash(v2, card)["bytes_written"]


def test_the_slot_that_the_device_relies_on_is_refused(card: Path, v2: Path) -> None:
    before = card.read_bytes()
    result = run(v2, card, "--slot", "a")
    assert (result.exit_code, "the device relies on slot" in result.stderr) == (7, True)
    assert f"error: {card}: the device relies on slot a:" in result.stderr
    assert "hint: without --slot, slot b is written" in result.stderr
    assert run(v2, card, "--slot", "c").exit_code == 7
    assert card.read_bytes() == before
    assert flash(v2, card, "--slot", "b")["slot"] == "b"


def test_a_file_that_another_program_uses(card: Path, v1: Path, v2: Path) -> None:
    """Another flash, or a machine in QEMU: both hold a lock. Reading is allowed."""
    before = card.read_bytes()
    other = FileTarget(card, 0)
    start, _ = layout_of(card).places["data"]
    other.write(start, b"what")
    for options in ((), ("--full",), ("--whole",)):
        result = run(v2, card, *options)
        assert (result.exit_code, "another program is using it" in result.stderr) == (7, True)
        assert not result.stdout
    assert run(v1, card).exit_code == 7, "what is right now need not be a moment later"
    assert run(v1, card, "--verify-only").exit_code == 0
    assert flash(v2, card, "--plan")["slot"] == "b"
    assert CliRunner().invoke(cli, ["slots", "show", str(card)]).exit_code == 0
    assert CliRunner().invoke(cli, ["slots", "activate", str(card), "b"]).exit_code == 7
    assert card.read_bytes() == before
    other.close()
    assert flash(v2, card)["slot"] == "b"


def test_a_slot_of_a_disk_without_slots(v2: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(1 << 20))
    result = run(v2, blank, "--slot", "b")
    assert (result.exit_code, "the target does not have the image's slots" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (Sizes(system=56 << 10), "larger than the slot: 'system_a' has 49152 bytes, 57344 are needed"),
        (Sizes(system=44 << 10), "the slots are not at the same place as in the image: 'misc'"),
    ],
)
def test_an_image_larger_than_the_slots_is_refused(sizes: Sizes, said: str, card: Path, tmp_path: Path) -> None:
    """The running system and its data are not lost without explicit consent."""
    before = card.read_bytes()
    other = disk_image(tmp_path / "other.img", 3, sizes)
    for options in ((), ("--full",), ("--plan",), ("--slot", "b"), ("--repair",)):
        result = run(other, card, *options)
        assert (result.exit_code, said in result.stderr) == (7, True), result.output
        assert "hint: --whole" in result.stderr
    assert card.read_bytes() == before


def test_another_layout_is_written_whole(card: Path, tmp_path: Path) -> None:
    other = disk_image(tmp_path / "other.img", 3, Sizes(system=56 << 10))
    assert flash(other, card, "--whole")["slot"] is None
    assert card.read_bytes()[: other.stat().st_size - 40 * 512] == other.read_bytes()[: -40 * 512]


def test_a_larger_data_partition_is_the_same_layout(card: Path, v2: Path) -> None:
    """At the first start, a device extends its data partition to the end of the disk."""

    from erofs_edge.disk import gpt

    with Image(card) as image:
        table = image.table()
    assert table is not None
    grown = table.sectors + 2048
    parts = (*table.partitions[:-1], table.partitions[-1]._replace(last_lba=grown - 80))
    head, tail = gpt.encode(table._replace(sectors=grown, partitions=parts))
    with card.open("r+b") as file:
        file.truncate(grown * 512)
        file.write(head)
        file.seek(grown * 512 - len(tail))
        file.write(tail)
    assert flash(v2, card)["slot"] == "b"


def test_a_larger_card(v1: Path, v2: Path, tmp_path: Path) -> None:
    """Its backup table is at the image's end until the device has started once."""
    card = tmp_path / "larger.img"
    card.write_bytes(b"\xa5" * (4 << 20))
    assert flash(v1, card)["slot"] is None
    assert flash(v2, card)["slot"] == "b"
    assert card.stat().st_size == 4 << 20


def test_damaged_slot_state_is_made_anew(card: Path, v2: Path) -> None:
    poke(card, "misc", 0, bytes(slots.STATE_SIZE))
    record = flash(v2, card)
    assert record["slot"] == "b"
    assert state(card) == SlotState(("B", "A"), {"A": 3, "B": 3})


def test_a_single_slot_is_written_in_place(tmp_path: Path) -> None:
    one = Sizes(slots=("a",))
    v1, v2 = disk_image(tmp_path / "v1.img", 1, one), disk_image(tmp_path / "v2.img", 2, one)
    card = tmp_path / "card.img"
    flash(v1, card)
    record = flash(v2, card)
    assert record["slot"] == "a"
    assert part(card, "system_a") == part(v2, "system_a")
    assert state(card) == SlotState(("A",), {"A": 3})


def test_the_recovery_slot_is_left_alone(tmp_path: Path) -> None:
    three = Sizes(slots=("a", "b", "recovery"))
    v1, v2, v3 = (disk_image(tmp_path / f"v{n}.img", n, three) for n in (1, 2, 3))
    card = tmp_path / "card.img"
    flash(v1, card)
    assert flash(v2, card)["slot"] == "b"
    assert flash(v3, card)["slot"] == "a"
    assert part(card, "system_recovery") == part(v1, "system_a")
    assert state(card).order == ("A", "B", "RECOVERY")
    assert flash(v3, card, "--slot", "recovery")["slot"] == "recovery"


def test_verify_only(card: Path, v1: Path, v2: Path) -> None:
    before = card.read_bytes()
    assert run(v1, card, "--verify-only").exit_code == 0
    result = run(v2, card, "--verify-only")
    assert result.exit_code == 4
    assert "bytes differ from the image, the first in 'boot_a' at 0x" in result.stderr
    poke(card, "system_b", 5000, b"rot")
    assert run(v1, card, "--verify-only").exit_code == 0
    assert run(v1, card, "--verify-only", "--slot", "b").exit_code == 4
    assert card.read_bytes()[:4096] == before[:4096]


def test_repair_writes_what_is_wrong_and_nothing_else(card: Path, v1: Path, v2: Path) -> None:
    flash(v2, card)
    whole, before = card.read_bytes(), state(card)
    poke(card, "system_a", 5000, b"rot")
    poke(card, "system_b", 4096 * 3, b"rot")
    poke(card, "boot_a", 0, b"rot")
    for image, blocks in ((v1, 2), (v2, 1)):
        record = flash(image, card, "--repair")
        assert record["bytes_written"] == blocks * 4096
    assert card.read_bytes() == whole
    assert state(card) == before
    assert flash(v2, card, "--repair")["bytes_written"] == 0


LARGE = Sizes(system=640 << 10)
"""bytes of a slot whose versions differ in few blocks, as those that are built on a baseline"""


def test_repair_leaves_other_builds_alone(tmp_path: Path) -> None:
    """Also if they are nearly the same: it took an older system for a damaged newer one, and wrote over both slots."""
    old, new = (disk_image(tmp_path / f"v{version}.img", version, LARGE, 100) for version in (1, 2))
    card = tmp_path / "card"
    card.write_bytes(old.read_bytes())
    poke(card, "system_a", 5000, b"rot")
    before = card.read_bytes()
    result = run(new, card, "--repair")
    assert (result.exit_code, "no slot holds this image: each holds another build" in result.stderr) == (4, True)
    assert run(new, card, "--repair", "--slot", "b").exit_code == 4
    assert card.read_bytes() == before
    assert flash(new, card)["slot"] == "b"
    whole = card.read_bytes()
    poke(card, "system_b", 5000, b"rot")
    poke(card, "boot_b", 0, b"rot")
    assert flash(new, card, "--repair")["bytes_written"] == 8192
    assert card.read_bytes() == whole
    poke(card, "boot_b", 0, bytes(12 << 10))  # erased, and no other build
    assert flash(new, card, "--repair")["bytes_written"] == 8192
    assert card.read_bytes() == whole
    assert flash(old, card, "--repair")["bytes_written"] == 4096
    assert part(card, "system_a") == part(old, "system_a")


@pytest.mark.parametrize("name", ["sha256", "crc32"])
def test_repair_of_a_device_that_hashes(tmp_path: Path, name: str) -> None:
    old, new = (disk_image(tmp_path / f"v{version}.img", version, LARGE, 100) for version in (1, 2))
    disk = SimulatedDisk(bytearray(old.read_bytes()))
    target = SimulatedTarget(disk, Ability.READ | Ability.HASH, hash_name=name)
    with pytest.raises(VerificationError, match="no slot holds this image"):
        prepare_repair(new, target, None, lambda _: nullcontext(lambda done, total: None))
    found = prepare_repair(old, target, None, lambda _: nullcontext(lambda done, total: None))
    assert [prepared.nothing_to_do for prepared in found] == [True, True]


def test_repair_of_a_slot_that_was_given_up(card: Path, v1: Path) -> None:
    poke(card, "system_b", 5000, b"rot")
    set_state(card, slots.mark(state(card), "b", "bad"))
    flash(v1, card, "--repair")
    assert state(card) == SlotState(("A", "B"), {"A": 4, "B": 3})


def test_repair_of_a_disk_without_slots(tmp_path: Path) -> None:
    image, card, blank = tmp_path / "image", tmp_path / "card", tmp_path / "blank"
    image.write_bytes(random.Random(1).randbytes(100 << 10))
    flash(image, card)
    with card.open("r+b") as file:
        file.seek(70 << 10)
        file.write(b"rot")
    assert flash(image, card, "--repair")["bytes_written"] == 4096
    assert card.read_bytes() == image.read_bytes()
    blank.write_bytes(bytes(200 << 10))
    result = run(image, blank, "--repair")
    assert (result.exit_code, "does not hold the image: more than half" in result.stderr) == (4, True)
    assert blank.read_bytes() == bytes(200 << 10)


def test_a_whole_disk_that_is_right_is_not_written(v1: Path, tmp_path: Path) -> None:
    """Nor are its correct parts: a few blocks show that comparing is worthwhile. `--full` and `--whole` write
    everything."""
    image, card = tmp_path / "image", tmp_path / "card"
    image.write_bytes(bytes(64 << 10) + random.Random(1).randbytes(64 << 10) + bytes(64 << 10))
    assert flash(image, card)["bytes_written"] == 192 << 10
    before = card.stat().st_mtime_ns
    assert flash(image, card)["bytes_written"] == flash(image, card, "--plan")["bytes_written"] == 0
    assert card.stat().st_mtime_ns == before
    with card.open("r+b") as file:  # a flash that stopped after three fifths
        file.seek(100 << 10)
        file.write(bytes(40 << 10))
    assert flash(image, card)["bytes_written"] == 28 << 10
    for option in ("--full", "--whole"):
        assert flash(image, card, option)["bytes_written"] == 192 << 10
    card.write_bytes(bytes(192 << 10))
    assert flash(image, card)["bytes_written"] == 192 << 10  # not compared: nothing there is like it


def test_repair_needs_the_image_of_a_slot(card: Path, tmp_path: Path) -> None:
    before = card.read_bytes()
    other = disk_image(tmp_path / "other.img", 7)
    poke(other, "system_a", 0, bytes(range(256)) * 16 * 9)
    result = run(other, card, "--repair")
    assert (result.exit_code, "no slot holds this image" in result.stderr) == (4, True)
    assert card.read_bytes() == before


def test_the_slot_is_closed_before_its_first_byte_changes(
    card: Path, v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device would see at the first write to a slot: only a, and a journal that names b and the image."""
    seen: list[tuple[SlotState, str]] = []
    start, end = layout_of(card).places["boot_b"]
    real = FileTarget.write

    def write(self: FileTarget, offset: int, data: bytes | memoryview) -> int:
        if start <= offset < end and not seen:
            entry = under_way(card)
            assert entry is not None
            seen.append((state(card), entry.slot))
        return real(self, offset, data)

    monkeypatch.setattr(FileTarget, "write", write)
    flash(v2, card)
    assert seen == [(SlotState(("A", "B"), {"A": 4, "B": 0}), "B")]


def test_a_journal_needs_room(tmp_path: Path) -> None:
    small = Sizes(misc=208 << 10)
    v1, v2 = disk_image(tmp_path / "v1.img", 1, small), disk_image(tmp_path / "v2.img", 2, small)
    card = tmp_path / "card.img"
    flash(v1, card)
    assert flash(v2, card)["slot"] == "b"
    assert part(card, "data") == bytes(8192)


def test_options_that_exclude_each_other(card: Path, v2: Path) -> None:
    for options in (["--plan", "--repair"], ["--repair", "--full"], ["--whole", "--slot", "b"]):
        assert run(v2, card, *options).exit_code == 2


def test_state_is_written_with_one_copy_whole_at_each_moment(card: Path) -> None:
    layout = layout_of(card)
    target = FileTarget(card, 0)
    start, end = layout.places["misc"]
    record = slot_state.read(target, start, end - start, layout.slots)
    new = slots.activate(record.state, "b")
    raw = part(card, "misc")
    (first, _), (second, _) = slots.writes(raw, new)
    assert (first, second) == (slots.ENV_OFFSETS[1], 0)
    torn = bytearray(raw)
    torn[0] ^= 1
    assert [offset for offset, _ in slots.writes(bytes(torn), new)] == list(slots.ENV_OFFSETS)
    slot_state.write(target, record, new)
    assert state(card) == new
    target.close()
