# SPDX-License-Identifier: Apache-2.0
"""Verdicts: good only for the right report and a prompt, stopped only at the right stage for the right reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.qemu.console import Console
from erofs_edge.qemu.stages import NAMES, TROUBLE
from erofs_edge.qemu.tamper import TAMPERS
from erofs_edge.qemu.verdict import Expected, Stop, Verdict, Watch

DATA = Path(__file__).parent / "data"
GOOD = (DATA / "good.txt").read_bytes().decode()
ROOT_HASH = "d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c"
REPORT = next(line for line in GOOD.splitlines() if line.startswith("erofs-edge: report"))


def judge(text: str, *, slot: str = "a", stop: Stop | None = None, ended: bool = True) -> Verdict | None:
    """The verdict over a whole console; where it decides nothing, over the end of the machine after it."""
    console, watch = Console(), Watch(Expected(ROOT_HASH, slot), stop)
    for event in [*console.feed(text.encode(), 1.0), *console.close(2.0)]:
        if verdict := watch.see(event):
            return verdict
    return watch.end("the machine ended") if ended else None


def failed(text: str, stage: str, reason: str, **more: object) -> None:
    verdict = judge(text, **more)  # type: ignore[arg-type]
    assert verdict is not None
    assert not verdict.ok
    assert (verdict.stage, reason in verdict.reason) == (stage, True), verdict


def test_the_recorded_boot_is_good() -> None:
    assert judge(GOOD) == Verdict(True, "login", "")


def test_prompt_before_report_is_good_too() -> None:
    assert judge(GOOD.replace(REPORT, "lab login: ") + REPORT + "\r\n") == Verdict(True, "login", "")


@pytest.mark.parametrize("first", ["lab", "lab "])
def test_a_report_in_the_middle_of_the_prompt_is_good_too(first: str) -> None:
    broken = f"{first}\r\n{REPORT}\r\n{'lab login: '.removeprefix(first)}"
    assert judge(GOOD.replace("lab login: ", "").replace(REPORT, broken)) == Verdict(True, "login", "")


def test_a_report_said_twice_is_good() -> None:
    assert judge(GOOD.replace(REPORT, f"{REPORT}\r\n{REPORT}")) == Verdict(True, "login", "")


def test_a_report_cut_by_noise_is_waited_for_again() -> None:
    torn = REPORT[:40] + "[  5.1] usb 1-1: new device\r\n" + REPORT[40:]
    assert judge(GOOD.replace(REPORT, f"{torn}\r\n{REPORT}")) == Verdict(True, "login", "")
    failed(GOOD.replace(REPORT, torn), "login", "ended")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("roothash=d47b", "roothash=d47c", "roothash="),
        ("root=erofs", "root=ext4", "root=ext4 where root=erofs was expected"),
        ("dm=verity", "dm=linear", "dm=linear"),
        ("status=V", "status=C", "status=C"),
        ("slot=a var", "slot=b var", "slot=b where slot=a"),
        ("var=ext4:rw", "var=ext4:ro", "var=ext4:ro"),
        ("var=ext4:rw", "var=tmpfs:rw", "var=tmpfs:rw"),
        (" data=/dev/vda6", "", "data= is no device"),
        (" status=V", "", "no status="),
    ],
)
def test_a_report_that_says_otherwise(old: str, new: str, reason: str) -> None:
    failed(GOOD.replace(REPORT, REPORT.replace(old, new)), "report", reason)


def test_u_boot_chooses_another_slot() -> None:
    failed(GOOD, "slot", "slot a, not b", slot="b")


def test_no_report() -> None:
    watch = Watch(Expected(ROOT_HASH, "a"))
    for event in Console().feed(GOOD.replace(REPORT, "").encode(), 1.0):
        assert watch.see(event) is None
    assert watch.timed_out(60) == Verdict(False, "report", "not reached within 60 s", late=True)


def test_no_prompt() -> None:
    watch = Watch(Expected(ROOT_HASH, "a"))
    for event in Console().feed(GOOD.replace("lab login: ", "").encode(), 1.0):
        assert watch.see(event) is None
    assert watch.timed_out(60) == Verdict(False, "login", "not reached within 60 s", late=True)


def test_a_boot_without_signature_is_not_good() -> None:
    failed(GOOD.replace("sha256,rsa2048:dev+ OK", "OK"), "signature", "no signature")


@pytest.mark.parametrize(
    ("after", "line", "stage", "reason"),
    [
        ("stage initramfs", "[  3.1] Kernel panic - not syncing: VFS", "verity", "kernel panic: VFS"),
        ("stage data", "erofs-edge: FAILED switch-root: the system has no /run", "switch-root", "no /run"),
        ("stage initramfs", "erofs-edge: FAILED foo: what", "verity", "what"),
        ("Starting kernel", "", "initramfs", "the machine ended"),
        ("slot a", "Bad Data Hash\r\nerofs-edge: slot does not start: a", "fit", "refused slot a: Bad Data Hash"),
        ("U-Boot 2025", "erofs-edge: no slot boots", "fit", "no slot to start"),
    ],
)
def test_a_boot_that_breaks_off(after: str, line: str, stage: str, reason: str) -> None:
    text = GOOD[: GOOD.index("\n", GOOD.index(after)) + 1] + line + "\r\n"
    failed(text, stage, reason)


def test_nothing_at_all() -> None:
    failed("", "u-boot", "ended")


def test_a_second_start_keeps_the_first_times() -> None:
    watch, console = Watch(Expected(ROOT_HASH, "a")), Console()
    for at in (1.0, 2.0):
        for event in console.feed(b"U-Boot 2025.01\r\n", at):
            watch.see(event)
    assert watch.reached == {"u-boot": 1.0}


SYSTEM, FIT = TAMPERS["system"].stop, TAMPERS["fit"].stop


def test_the_recorded_damage_is_stopped_where_it_must_be() -> None:
    verdict = judge((DATA / "tampered-system.txt").read_text(), stop=SYSTEM)
    assert verdict is not None
    assert (verdict.ok, verdict.stage) == (True, "verity")
    assert "data block 0 is corrupted" in verdict.reason
    verdict = judge((DATA / "tampered-fit.txt").read_text(), stop=FIT)
    assert verdict is not None
    assert (verdict.ok, verdict.stage) == (True, "fit")


def test_a_damaged_system_that_boots() -> None:
    failed(GOOD, "root", "got past the stage 'dm-verity active'", stop=SYSTEM)
    failed(GOOD, "kernel", "got past the stage 'FIT verified'", stop=FIT)


def test_a_damaged_system_that_stops_for_another_reason() -> None:
    text = (DATA / "tampered-system.txt").read_text()
    failed(text.replace("corrupted", "tired"), "verity", "not for the damage", stop=SYSTEM)
    failed(text, "kernel", "got past", stop=FIT)
    failed((DATA / "tampered-fit.txt").read_text(), "fit", "another stage", stop=SYSTEM)


def test_a_damaged_system_may_restart_or_panic() -> None:
    head = GOOD[: GOOD.index("erofs-edge: stage verity")]
    corrupt = "[ 3.1] device-mapper: verity: 253:3: data block 0 is corrupted\r\n"
    for rest in ("", "[ 3.2] Kernel panic - not syncing: dm-verity device corrupted\r\n"):
        verdict = judge(head + corrupt + rest, stop=SYSTEM)
        assert verdict is not None
        assert (verdict.ok, verdict.stage) == (True, "verity")


def test_a_damaged_system_that_hangs_was_not_stopped() -> None:
    watch = Watch(Expected(ROOT_HASH, "a"), SYSTEM)
    for event in Console().feed(GOOD[: GOOD.index("erofs-edge: stage verity")].encode(), 1.0):
        assert watch.see(event) is None
    assert watch.timed_out(60) == Verdict(False, "verity", "not reached within 60 s", late=True)


def test_every_scenario_names_a_stage() -> None:
    for tamper in TAMPERS.values():
        assert tamper.stop is None or (tamper.stop.stage in NAMES and tamper.stop.evidence in TROUBLE)
