# SPDX-License-Identifier: Apache-2.0
"""A new system that does not work: the machine restarts by itself until the other slot is up. What the verdict makes of
consoles, what the scenarios put on a disk, and (with `make test-boot`) each of them in real QEMU."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_road import console_until

from erofs_edge.disk import slots
from erofs_edge.errors import BootCheckError, UsageError
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board, Partition
from erofs_edge.qemu import forge
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.fallback import fall_back
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.scenario import FAULTS, MARKER_ROOM
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.smoke import Observer, smoke
from erofs_edge.qemu.stages import TROUBLE

if TYPE_CHECKING:
    from fake_machine import FakeQemu

Recorded = Callable[[str], str]
PANIC = "[   9.1] Kernel panic - not syncing: sysrq triggered crash\r\n"
GOOD = "erofs-edge: slot a is good\r\n"
DATA = 6 << 20  # where the data partition of the hand-made build starts


def failing(recorded: Recorded, trouble: str = PANIC) -> str:
    """The console of a start of slot b that ends after the initramfs."""
    return recorded("good").replace("slot a", "slot b").partition("erofs-edge: report")[0] + trouble


def trial(built: Path, board: Board) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        state = slots.mark(disk.state(), "a", "good")
        disk.put_state(slots.activate(state, "b"))


def test_the_other_slot_comes_up(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    trial(built, board)
    before = (built / "disk.img").read_bytes()
    fake_qemu.plan(failing(recorded) * 3 + recorded("good"), 60)
    record = fall_back(board, built)
    assert (record.fell_from, record.starts, record.slot) == ("b", 3, "a")
    assert record.evidence == PANIC.strip()
    assert record.report is not None and record.report["slot"] == "a"
    titles = [stage.title for stage in record.stages]
    assert [titles.count(f"slot {slot} chosen") for slot in "ba"] == [3, 1]
    assert titles.count("FIT signed") == 4, "once for each start, although U-Boot says it twice"
    assert record.stages[-1].seconds == record.seconds
    boot = " ".join(fake_qemu.calls[-1])
    assert "-no-reboot" not in boot and f"file={built}/disk.img,snapshot=on" in boot
    assert not fake_qemu.finished and (built / "disk.img").read_bytes() == before


def test_a_disk_that_keeps_what_is_written_waits_for_the_good_slot(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    trial(built, board)
    own = built.parent / "own.img"
    (built / "disk.img").rename(own)
    (built / "disk.img").touch()
    fake_qemu.plan(failing(recorded) + recorded("good") + "\r\n" + GOOD, 60)
    assert fall_back(board, built, disk=own, keep=True).slot == "a"
    assert "snapshot" not in " ".join(fake_qemu.calls[-1])
    fake_qemu.plan(failing(recorded) + recorded("good"))
    with pytest.raises(BootCheckError, match="the machine ended"):
        fall_back(board, built, disk=own, keep=True)


def test_boot_loaders_that_refuse_a_slot_go_on_at_once(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    trial(built, board)
    head, _, _ = recorded("good").partition("erofs-edge: stage u-boot")
    refused = "erofs-edge: stage u-boot slot b\r\nBad hash value for 'hash' hash node\r\n"
    rest = recorded("good").removeprefix(head)
    fake_qemu.plan(head + refused + "erofs-edge: slot does not start: b\r\n" + rest, 60)
    record = fall_back(board, built, scenario="boot-image")
    assert (record.starts, record.slot) == (1, "a") and "Bad hash value" in record.evidence
    assert record.damage and all("boot_b" in what for what in record.damage)


@pytest.mark.parametrize(
    ("console", "message"),
    [
        (lambda good, bad: good, "U-Boot chose slot a, not b"),
        (lambda good, bad: bad + "erofs-edge: slot b is good\r\n", "slot b works"),
        (lambda good, bad: (bad + good[: good.index("report")]) * 2, "slot a did not come up either"),
        (lambda good, bad: bad.replace("panic", "picnic") + good, "nothing says why"),
        (lambda good, bad: bad, "no other slot was tried: the machine ended"),
        (lambda good, bad: bad + "erofs-edge: no slot boots\r\n", "found no slot"),
        (lambda good, bad: bad + good.replace("slot=a", "slot=b"), "slot=b where slot=a was expected"),
        (lambda good, bad: bad + good.partition("erofs-edge: report")[0], "the machine ended"),
    ],
)
def test_what_is_no_fallback(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded, console: Any, message: str
) -> None:
    trial(built, board)
    fake_qemu.plan(console(recorded("good"), failing(recorded)))
    with pytest.raises(BootCheckError, match=message) as caught:
        fall_back(board, built)
    assert caught.value.hint == "--log FILE saves the whole console"


def test_the_other_slot_may_hold_another_build(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    trial(built, board)
    (root_hash,) = set(re.findall("roothash=([0-9a-f]{64})", recorded("good")))
    fake_qemu.plan(failing(recorded) + recorded("good").replace(root_hash, "ab" * 32))
    with pytest.raises(BootCheckError, match="roothash=abab") as caught:
        fall_back(board, built)
    assert "-o FOLDER" in (caught.value.hint or "")


def test_time_is_up(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    trial(built, board)
    fake_qemu.plan(failing(recorded), 60)
    with pytest.raises(BootCheckError, match=r"no other slot was tried within 1 s") as caught:
        fall_back(board, built, observer=Observer(1))
    assert "--timeout SECONDS" in (caught.value.hint or "")


def test_what_cannot_fall_back_is_told(fake_qemu: FakeQemu, built: Path, board: Board, repository: Path) -> None:
    with Scratch(built / "disk.img", board, writable=True) as disk:
        disk.put_state(slots.mark(disk.state(), "b", "bad"))
    with pytest.raises(UsageError, match="no other slot") as caught:
        fall_back(board, built)
    assert caught.value.hint == f"erofs-edge slots show {built}/disk.img"
    with pytest.raises(UsageError, match="unknown scenario 'flood'"):
        fall_back(board, built, scenario="flood")
    board.disk.partitions["data"] = Partition(size="rest")
    try:
        with pytest.raises(UsageError, match="no data partition") as caught:
            fall_back(board, built, scenario="unit")
        assert caught.value.hint == "without one, and with an encrypted one: boot-image"
    finally:
        board.disk.partitions["data"] = Partition(size="rest", filesystem="ext4")
    uefi = load_board(repository / "boards/generic-uefi-arm64.yaml").value
    with pytest.raises(UsageError, match="its UEFI boot loader") as caught:
        fall_back(uefi, built)
    assert "--tamper" in (caught.value.hint or "")
    assert not fake_qemu.calls or fake_qemu.calls == [["--version"]] * len(fake_qemu.calls)


@pytest.mark.parametrize("name", ["unit", "panic", "watchdog"])
def test_faults_of_the_system_come_by_its_data_partition(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded, oracle: Callable[[str], str], name: str
) -> None:
    """The file system is whole, has the fault's unit in the layer over /etc, and leaves the marker's place alone."""
    with Scratch(built / "disk.img", board, writable=True) as disk:
        disk.write("data", 5000, b"what an earlier system wrote")
    lines = {"unit": "erofs-edge: slot b is not well: edge-fault.service; the board restarts\r\n", "panic": PANIC}
    trouble = lines.get(name, "[   8.8] watchdog: watchdog0: watchdog did not stop!\r\n")
    fake_qemu.plan(failing(recorded, trouble) + recorded("good"), 60)
    record = fall_back(board, built, scenario=name)
    assert record.scenario == name and TROUBLE[FAULTS[name].evidence].search(record.evidence)
    seen = fake_qemu.disk_seen
    state, _ = slots.decode_state(seen[5 << 20 : (5 << 20) + slots.STATE_SIZE])
    assert state.order == ("B", "A") and state.left == {"A": 4, "B": 3}
    with Scratch(built / "disk.img", board) as disk:
        start, size = disk.place("data")
        assert not any(disk.read("data", 0, 4096))
    image = built / "data.img"
    image.write_bytes(seen[start : start + size])
    assert not any(seen[start + size - MARKER_ROOM : start + size])
    subprocess.run([oracle("e2fsck"), "-f", "-n", str(image)], check=True, capture_output=True)
    cat = ["-R", "cat /etc/upper/systemd/system/edge-fault.service", str(image)]
    unit = subprocess.run([oracle("debugfs"), *cat], check=True, capture_output=True, text=True).stdout
    assert FAULTS[name].harm in unit and "grep -qx slot=b" in unit


def test_a_disk_that_keeps_what_is_written_must_have_a_good_slot(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    own = built.parent / "own.img"
    (built / "disk.img").rename(own)
    (built / "disk.img").touch()
    fake_qemu.plan(recorded("good") + GOOD, 60)
    record = smoke(board, built, disk=own, keep=True)
    assert record.slot == "a" and not fake_qemu.finished
    assert f"file={own} " in " ".join(fake_qemu.calls[-1]).replace(",if=", " ")
    fake_qemu.plan(recorded("good"))
    with pytest.raises(BootCheckError):
        smoke(board, built, disk=own, keep=True)


def test_a_damaged_block_has_no_source_in_the_other_slot(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    """Both slots have the same bit flipped, in a program that nothing runs but the unit in slot b."""
    corrupt = "[   9.2] device-mapper: verity: 254:0: data block 130 is corrupted\r\n"
    fake_qemu.plan(failing(recorded, corrupt) * 3 + recorded("good"), 60)
    record = fall_back(board, built, scenario="verity")
    assert record.starts == 3 and record.evidence == corrupt.strip()
    seen, whole = fake_qemu.disk_seen, (built / "system.img").read_bytes()
    with Scratch(built / "disk.img", board) as disk:
        places = [disk.place(f"system_{slot}")[0] for slot in "ab"]
    found = [seen[start : start + len(whole)] for start in places]
    assert found[0] == found[1] and found[0] != whole
    (flipped, *parity) = [index for index, pair in enumerate(zip(found[0], whole, strict=True)) if pair[0] != pair[1]]
    assert flipped == whole.index(b"\n5355600\n4355600"), "where that program starts: numbers, written backwards"
    assert parity, "error correction would undo it"


BOARD = "boards/qemu-aarch64.yaml"
long = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3000)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=long) for name in FAULTS])
def test_each_fault_in_a_real_machine(name: str, stock: Callable[[str], Path], edge: str, repository: Path) -> None:
    words = ["-o", str(stock("qemu-aarch64")), "--scenario", name, "--json", "--timeout", "2400"]
    done = subprocess.run([edge, "boot", BOARD, *words], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["fell_from"], record["slot"]) == ("b", "a")
    assert record["starts"] == (1 if name == "boot-image" else 3)
    assert TROUBLE[FAULTS[name].evidence].search(record["evidence"])


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.xdist_group("qemu")
@pytest.mark.timeout(3000)
def test_the_story_of_make_demo(edge: str, repository: Path, tmp_path: Path) -> None:
    """Version 1 to an empty board, version 2 to the other slot, a bad version 3: version 2 is back, and stays good."""
    out = tmp_path / "out"
    done = subprocess.run(
        [repository / "tools/demo", str(Path(edge).parent.parent), str(out)], cwd=repository, text=True, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "DEMO": "smoke"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    up = [line for line in done.stdout.splitlines() if "is up after" in line]
    assert [re.findall(r"slot (.)", line) for line in up] == [["a"], ["b"], ["a", "b"]]
    assert "in 3 starts" in up[2] and "Kernel panic" in up[2]
    command = [edge, "slots", "show", f"{out}.versions/board.img", "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [(slot["name"], slot["standing"], slot["next"]) for slot in shown["slots"]] == [
        ("a", "bad", False), ("b", "good", True),
    ]  # fmt: skip
    written = re.findall(r"^system_.  +\S+  +([\d.]+) (KiB|MiB)  ", done.stdout, re.M)
    mebibytes = [float(number) / (1024 if unit == "KiB" else 1) for number, unit in written]
    assert len(mebibytes) == 4 and min(mebibytes[:2]) > 50 and max(mebibytes[2:]) < 6, "an update is what differs"


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.xdist_group("qemu")
@pytest.mark.timeout(3000)
def test_a_damaged_slot_is_repaired_from_the_other_one(
    stock: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    """More than error correction can do, in slot b alone: it restarts once, is mended at the next start, and works."""
    board = load_board(repository / BOARD).value
    built = load_built(stock("qemu-aarch64"))
    disk = copy_sparse(built.disk, tmp_path / "disk.img")
    with Scratch(disk, board, writable=True) as scratch:
        state = slots.mark(scratch.state(), "a", "good")
        scratch.put_state(slots.activate(state, "b"))
        changes = forge.in_init(forge.Target(board, lambda at, length: scratch.read("system_b", at, length)))
        for change in changes:
            scratch.write("system_b", change.offset, change.data)
    command = machine_command(board, built, find_qemu(), tmp_path, Wiring(disk, snapshot=False, reboot=True))
    console = console_until(command, b"erofs-edge: slot b is good", seconds=1800)
    assert console.count(b"erofs-edge: stage u-boot slot b") == 2 and b"u-boot slot a" not in console
    first, _, second = console.partition(b"is corrupted")
    assert b"repaired" not in first
    mended = re.search(rb"erofs-edge: (\d+) blocks of slot b were repaired from slot a", second)
    assert mended and int(mended[1]) == 1
    size = (stock("qemu-aarch64") / "system.img").stat().st_size
    with Scratch(disk, board) as scratch:
        expected, found = (bytearray(scratch.read(f"system_{slot}", 0, size)) for slot in "ab")
    for parity in changes[1:]:  # wiped, too, so that error correction cannot help; nothing proves it, so it stays so
        expected[parity.offset : parity.offset + len(parity.data)] = parity.data
    assert found == expected
