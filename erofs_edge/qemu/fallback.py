# SPDX-License-Identifier: Apache-2.0
"""A board whose next slot does not work must fall back by itself: it may restart as often as needed, but another slot
must come up. The verdict on such a boot, and the boot itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.disk import slots
from erofs_edge.errors import UsageError
from erofs_edge.manifest.model import Board
from erofs_edge.qemu.built import load_built, machine_command, run_folder
from erofs_edge.qemu.console import Console, Event
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.run import failure, run
from erofs_edge.qemu.scenario import FAULTS, Fault, fault_of, inject
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.smoke import GOOD, Observer, StageTime, data_filesystem
from erofs_edge.qemu.stages import TITLES, Match
from erofs_edge.qemu.verdict import Expected, Verdict, Watch

__all__ = ["FAULTS", "TIMEOUT", "FallbackRecord", "FallbackWatch", "fall_back"]

TIMEOUT = 600.0
"""seconds; a failing slot is tried three times"""


@dataclass(frozen=True, slots=True)
class FallbackRecord:
    """A board that fell back. `starts`: of the failing slot; `evidence`: the console line that says why; `seconds`:
    from power-on to the other slot's last stage; `stages`: of all starts, in their order."""

    board: str
    slot: str
    fell_from: str
    starts: int
    evidence: str
    root_hash: str
    qemu: str
    seconds: float
    report: dict[str, str] | None
    scenario: str | None = None
    damage: list[str] = field(default_factory=list)
    stages: list[StageTime] = field(default_factory=list)


@dataclass(slots=True)
class FallbackWatch:
    """Collects events until the outcome is clear.

    expected  the slot that must come up in the end
    failing   the slot that is tried before
    wanted    the kind of trouble (a key of stages.TROUBLE) that the failing slot must show; None for any
    good      the slot that comes up must also be marked good
    """

    expected: Expected
    failing: str
    wanted: str | None = None
    good: bool = False
    starts: int = 0
    troubles: list[Match] = field(default_factory=list)
    final: Watch | None = None

    def see(self, event: Event) -> Verdict | None:
        """The verdict, once there is one."""
        match = event.match
        if (match.kind, match.name) == ("stage", "slot"):
            return self._started(event)
        if self.final is not None:
            return self.final.see(event)
        if match.kind == "line":
            return Verdict(False, "slot", f"slot {self.failing} works: {match.text.strip()}")
        if match.kind == "trouble":
            self.troubles.append(match)
            if match.name == "no-slot":
                return Verdict(False, "slot", "U-Boot found no slot to start")
        return None

    def end(self, reason: str) -> Verdict:
        """The verdict after the machine has ended."""
        return self.final.end(reason) if self.final else Verdict(False, "slot", f"no other slot was tried: {reason}")

    def timed_out(self, seconds: float) -> Verdict:
        """The verdict after the time limit."""
        if self.final is not None:
            return self.final.timed_out(seconds)
        return Verdict(False, "slot", f"no other slot was tried within {seconds:g} s", late=True)

    @property
    def evidence(self) -> str | None:
        """The last line that says why the slot did not work; None if it was not for the wanted reason."""
        told = [match.text.strip() for match in self.troubles if self.wanted in (None, match.name)]
        return told[-1] if told else None

    def _started(self, event: Event) -> Verdict | None:
        slot = event.match.fields["slot"]
        if slot == self.failing and self.final is None:
            self.starts += 1
            return None
        if slot == self.failing:
            return Verdict(False, "slot", f"slot {self.expected.slot} did not come up either")
        if not self.starts:
            return Verdict(False, "slot", f"U-Boot chose slot {slot}, not {self.failing}")
        if self.evidence is None:
            return Verdict(False, "slot", f"slot {self.failing} was given up, but nothing says why")
        if self.final is None:
            self.final = Watch(self.expected, lines={GOOD} if self.good else set())
        return self.final.see(event)


def fall_back(
    board: Board,
    out: Path,
    *,
    disk: Path | None = None,
    scenario: str | None = None,
    keep: bool = False,
    observer: Observer | None = None,
) -> FallbackRecord:
    """Start a disk and let the machine restart until a slot other than its next one is up, with the build in `out`.

    disk      an image other than out/disk.img
    scenario  one of FAULTS: a copy of the disk has slot b on trial, with this fault
    keep      keep what the machine writes to the disk, and require that the slot that comes up is marked good
    observer  its time limit is for all starts together (None: TIMEOUT), and it is told each stage of each

    Raises BootCheckError if the next slot works or no other one comes up, ToolError without a usable QEMU, UsageError
    for a board or a disk that cannot fall back.
    """
    if board.boot.uefi is not None:
        raise UsageError(
            f"board '{board.board}' counts its starts in its UEFI boot loader, which this check does not follow",
            hint="use a board that U-Boot starts; on this one --tamper works",
        )
    observer = observer or Observer(TIMEOUT)
    fault = fault_of(scenario, board) if scenario is not None else None
    built, emulator = load_built(out), find_qemu()
    with run_folder(out) as folder:
        disk = disk or built.disk
        if fault:
            disk = copy_sparse(disk, folder / "disk.img")
        failing, other, damage = _prepare(disk, board, fault, folder)
        extra = fault.devices if fault else ()
        wiring = Wiring(disk, snapshot=not keep, reboot=True, extra=extra)
        command = machine_command(board, built, emulator, folder, wiring)
        expected = Expected(built.root_hash, other, data_filesystem(board))
        watch = FallbackWatch(expected, failing, fault.evidence if fault else None, good=keep)
        console, passed, of_start = Console((GOOD,)), list[StageTime](), set[str]()

        def note(event: Event) -> None:
            name = event.match.name
            if name in ("u-boot", "slot"):
                of_start.clear()
            if event.match.kind in ("stage", "report") and name not in of_start:
                of_start.add(name)
                title = f"slot {event.match.fields['slot']} chosen" if name == "slot" else TITLES[name]
                passed.append(StageTime(name, title, round(event.at, 2)))
                observer.seen(passed[-1])

        verdict = run(command, watch, console, timeout=observer.timeout, seen=note, log=observer.log)
    if not verdict.ok:
        what = f"'{scenario}' did not end as expected" if scenario else f"no other slot took over from slot {failing}"
        other_build = watch.final is not None and watch.final.other_build
        raise failure(what, verdict, console, observer.log, other_build=other_build)
    return FallbackRecord(
        board.board, other, failing, watch.starts, watch.evidence or "", built.root_hash, emulator.version_text,
        passed[-1].seconds, watch.final.report if watch.final else None, scenario, damage, passed,
    )  # fmt: skip


def _prepare(disk: Path, board: Board, fault: Fault | None, folder: Path) -> tuple[str, str, list[str]]:
    """The slot that is tried first, the one that remains, and what was damaged. Raises UsageError without two slots."""
    with Scratch(disk, board, writable=fault is not None) as scratch:
        damage = inject(fault, scratch, folder) if fault else []
        state = scratch.state()
        first, _ = slots.choose(state)
        rest = slots.mark(state, first, "bad")
        second, _ = slots.choose(rest)
        if second == first or not rest.left[second]:
            raise UsageError(
                "there is no other slot to fall back to", where=str(disk), hint=f"erofs-edge slots show {disk}"
            )
        return first.lower(), second.lower(), damage
