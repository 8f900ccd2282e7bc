# SPDX-License-Identifier: Apache-2.0
"""Smoke boots with a program that pretends to be QEMU: recorded boots, and machines that die, hang or babble."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from waiting import Clock, eventually

from erofs_edge.disk import slots
from erofs_edge.errors import BootCheckError, ErofsEdgeError, ToolError, UsageError
from erofs_edge.manifest.model import Board
from erofs_edge.manifest.verified import Verity
from erofs_edge.qemu.built import run_folder
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.run import run
from erofs_edge.qemu.scratch import Scratch
from erofs_edge.qemu.smoke import Observer, StageTime, smoke
from erofs_edge.qemu.stages import NAMES
from erofs_edge.qemu.verdict import Expected, Watch

if TYPE_CHECKING:
    from fake_machine import FakeQemu

Recorded = Callable[[str], str]
ROOT_HASH = "d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c"


def test_a_good_boot(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    before = (built / "disk.img").read_bytes()
    fake_qemu.plan(recorded("good"), 60)
    seen: list[StageTime] = []
    record = smoke(board, built, observer=Observer(seen=seen.append))
    assert [stage.stage for stage in record.stages] == list(NAMES)[:-1]
    assert seen == record.stages
    assert (record.board, record.slot, record.qemu, record.root_hash) == ("lab", "a", "10.0.2", ROOT_HASH)
    assert record.report is not None
    assert record.report["data"] == "/dev/vda6"
    assert not fake_qemu.finished, "QEMU was not ended once all was known"
    assert (built / "disk.img").read_bytes() == before
    assert sorted(path.name for path in built.iterdir() if path.name.startswith(".")) == []


def test_the_machine_gets_the_disk_and_the_control_tree(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded
) -> None:
    fake_qemu.plan(recorded("good"))
    smoke(board, built)
    version, dump, boot = fake_qemu.calls
    assert version == ["--version"]
    assert "dumpdtb" in " ".join(dump)
    assert f"file={built}/disk.img,snapshot=on" in " ".join(boot)
    assert "-no-reboot" in boot
    assert "-netdev" not in boot


def test_another_disk(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    other = built.parent / "other.img"
    (built / "disk.img").rename(other)
    (built / "disk.img").write_bytes(b"")
    with Scratch(other, board, writable=True) as disk:
        disk.activate("b")
    fake_qemu.plan(recorded("good").replace("slot a", "slot b").replace("slot=a", "slot=b"))
    assert smoke(board, built, disk=other).slot == "b"
    assert f"file={other},snapshot=on" in " ".join(fake_qemu.calls[-1])


def test_slot_b_is_chosen_in_a_copy(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    before = (built / "disk.img").read_bytes()
    fake_qemu.plan(recorded("good").replace("slot a", "slot b").replace("slot=a", "slot=b"))
    assert smoke(board, built, slot="b").slot == "b"
    assert (built / "disk.img").read_bytes() == before
    misc = 5 << 20
    state, _ = slots.decode_state(fake_qemu.disk_seen[misc : misc + slots.STATE_SIZE])
    assert state.order == ("B", "A")


def test_slot_b_that_boots_a(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good"))
    with pytest.raises(BootCheckError, match="U-Boot chose slot a, not b"):
        smoke(board, built, slot="b")


def test_a_disk_that_holds_another_build(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    """Not a failure of the board: -o names the wrong folder."""
    other = recorded("good").replace(ROOT_HASH, "ab" * 32)
    fake_qemu.plan(other)
    with pytest.raises(BootCheckError, match="stage 'guest report': roothash=abab") as caught:
        smoke(board, built)
    assert caught.value.hint == "the disk holds another build: give the folder of that one with -o FOLDER"
    fake_qemu.plan(recorded("good").replace("var=ext4:rw", "var=ext4:ro"))
    with pytest.raises(BootCheckError, match="var=ext4:ro where var=ext4:rw") as caught:
        smoke(board, built)
    assert caught.value.hint == "--log FILE saves the whole console"


def test_damage_that_is_stopped(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    before = (built / "disk.img").read_bytes()
    fake_qemu.plan(recorded("tampered-system"))
    record = smoke(board, built, tamper="system")
    assert (record.tamper, record.stopped_at) == ("system", "verity")
    assert record.damage[::2] == ["byte 0x0 of system_a", "byte 0x0 of system_b"]
    assert record.evidence is not None
    assert "corrupted" in record.evidence
    assert (built / "disk.img").read_bytes() == before
    assert fake_qemu.disk_seen[3 << 20] != before[3 << 20]


def test_damage_that_is_repaired(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good").replace("data=/dev/vda6", "data=/dev/vda6 fec=3"))
    record = smoke(board, built, tamper="fec")
    assert (record.stopped_at, record.evidence) == (None, "the guest's kernel has corrected 3 blocks")
    assert record.report is not None
    for corrected in ("fec=0", "fec=none"):
        fake_qemu.plan(recorded("good").replace("data=/dev/vda6", f"data=/dev/vda6 {corrected}"))
        with pytest.raises(BootCheckError, match="'fec' did not end as expected"):
            smoke(board, built, tamper="fec")


def test_another_command_line(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    head = recorded("good").partition("erofs-edge: stage verity")[0]
    refusal = "erofs-edge: FAILED initramfs: the kernel's arguments are not those of this build: x"
    fake_qemu.plan(f"{head}{refusal}\r\n")
    record = smoke(board, built, tamper="cmdline")
    assert (record.damage, record.stopped_at, record.evidence) == (["the boot script"], "initramfs", refusal)
    fake_qemu.plan(recorded("good"))
    with pytest.raises(BootCheckError, match="got past"):
        smoke(board, built, tamper="cmdline")


def test_damage_that_nobody_notices(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good"))
    with pytest.raises(BootCheckError, match="'system' did not end as expected"):
        smoke(board, built, tamper="system")


def test_what_a_failure_says(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    head = recorded("good").partition("erofs-edge: stage verity")[0]
    fake_qemu.plan(head + "erofs-edge: FAILED verity: no partition is labelled 'system_a'\r\n", 60)
    with pytest.raises(BootCheckError) as failure:
        smoke(board, built)
    message = str(failure.value)
    assert failure.value.exit_code == 9
    assert message.startswith(
        "slot a did not boot as expected: stage 'dm-verity active': no partition is labelled 'system_a'\n"
    )
    assert "  | erofs-edge: FAILED verity" in message
    assert "  | Starting kernel ..." in message
    assert len(message) < 10_000
    assert not fake_qemu.finished


def test_a_machine_that_ends(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good").partition("erofs-edge: stage data")[0], complaint="qemu: the disk is gone", code=1)
    with pytest.raises(BootCheckError, match="stage 'data': the machine ended: qemu: the disk is gone"):
        smoke(board, built)


def test_qemu_that_gives_up_at_once(fake_qemu: FakeQemu, built: Path, board: Board) -> None:
    fake_qemu.plan(complaint="qemu: cannot set up guest memory", code=1)
    with pytest.raises(ToolError, match="before the machine printed anything: qemu: cannot set up guest memory"):
        smoke(board, built)


def test_a_machine_that_hangs(
    fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.plan(recorded("good").partition("erofs-edge: stage root")[0], 600)
    monkeypatch.setattr("erofs_edge.qemu.run.time", clock := Clock())

    def seen(stage: StageTime) -> None:
        if stage.stage == "verity":
            clock.ahead = 200

    with pytest.raises(BootCheckError, match="stage 'EROFS root': not reached within 200 s") as caught:
        smoke(board, built, observer=Observer(200, seen))
    assert caught.value.hint == "--timeout SECONDS gives it longer, --log FILE saves the whole console"
    assert not fake_qemu.finished


def test_a_machine_that_babbles_without_end(tmp_path: Path) -> None:
    """`yes` fills a pipe as fast as it is read; the time limit holds all the same and little is kept."""
    console = Console()
    verdict = run(
        ["yes", "x" * 1000], Watch(Expected(ROOT_HASH, "a")), console, timeout=0.5, seen=lambda event: None, log=None
    )
    assert not verdict.ok
    assert verdict.stage == "u-boot"
    assert len("".join(console.last_lines())) < 50_000


def test_the_whole_console_in_a_log(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good"), 60)
    smoke(board, built, observer=Observer(log=built.parent / "log"))
    assert (built.parent / "log").read_bytes().decode() == recorded("good")


def test_a_log_that_cannot_be_written(fake_qemu: FakeQemu, built: Path, board: Board) -> None:
    with pytest.raises(ErofsEdgeError, match="cannot write"):
        smoke(board, built, observer=Observer(log=built / "no/such/folder"))


def test_a_log_for_which_there_is_no_room(fake_qemu: FakeQemu, built: Path, board: Board, recorded: Recorded) -> None:
    fake_qemu.plan(recorded("good"), 60)
    with pytest.raises(ErofsEdgeError, match=r"^/dev/full: cannot write the console's log: No space left on device$"):
        smoke(board, built, observer=Observer(log=Path("/dev/full")))
    assert not fake_qemu.finished


def test_an_unknown_scenario_or_slot(fake_qemu: FakeQemu, built: Path, board: Board) -> None:
    with pytest.raises(UsageError) as failure:
        smoke(board, built, tamper="nothing")
    assert (failure.value.hint or "").startswith("scenarios: system, fit, kernel, initramfs, ")
    with pytest.raises(UsageError, match="no partition that 'vbmeta' could change") as failure:
        smoke(board, built, tamper="vbmeta")
    assert failure.value.hint == "boards/qemu-aarch64-avb.yaml has one"
    with pytest.raises(UsageError, match="no error correction"):
        smoke(msgspec.structs.replace(board, verity=Verity()), built, tamper="fec")
    with pytest.raises(UsageError, match="no slot 'c'"):
        smoke(board, built, slot="c")


@pytest.mark.parametrize("name", ["release.json", "disk.img", "u-boot.bin", "sign.pub.pem"])
def test_an_incomplete_build(fake_qemu: FakeQemu, built: Path, board: Board, name: str) -> None:
    (built / name).unlink()
    with pytest.raises(ErofsEdgeError) as failure:
        smoke(board, built)
    assert str(built) in (failure.value.where or "")


def test_a_release_record_that_says_too_little(fake_qemu: FakeQemu, built: Path, board: Board) -> None:
    (built / "release.json").write_text('{"format": 1, "sign": {"name": "dev"}}')
    with pytest.raises(ErofsEdgeError, match="has no 'system'"):
        smoke(board, built)


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_has_is_not(built: Path) -> None:
    (built / ".run-dead").mkdir()
    (built / ".run-dead/disk.img").write_bytes(b"x")
    with run_folder(built) as alive, run_folder(built) as second:
        assert alive.is_dir()
        assert second.is_dir()
        assert not (built / ".run-dead").exists()
    assert not list(built.glob(".run-*"))


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with run_folder(tmp_path / "gone") as folder:
        assert folder.is_dir()
    assert not folder.exists()


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from fake_machine import BOARD
from erofs_edge.qemu.smoke import smoke
smoke(BOARD, Path({out!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_qemu_dies_with_us(fake_qemu: FakeQemu, built: Path, recorded: Recorded, number: signal.Signals) -> None:
    fake_qemu.plan(60)  # says nothing: a closed pipe cannot be what ends it
    code = INTERRUPTED.format(here=str(Path(__file__).parent), out=str(built))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as child:
        assert eventually((fake_qemu.folder / "disk-seen").exists)
        (machine,) = _children(child.pid)
        child.send_signal(number)
        child.wait(60)
    assert eventually(lambda: not _alive(machine))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
