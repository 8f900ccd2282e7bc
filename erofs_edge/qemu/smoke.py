# SPDX-License-Identifier: Apache-2.0
"""Boot a built board unattended, judging only by its console."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from erofs_edge.manifest.model import Board
from erofs_edge.manifest.shaping import Smoke
from erofs_edge.qemu.built import Built, load_built, machine_command, run_folder
from erofs_edge.qemu.console import Console, Event
from erofs_edge.qemu.machine import CHECKS_DRIVE, GRAPHICS, WATCHDOG, Wiring, find_qemu
from erofs_edge.qemu.run import failure, run
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.stages import TITLES, UEFI_TITLES
from erofs_edge.qemu.tamper import Tamper, scenario
from erofs_edge.qemu.u_boot_uefi import put_firmware
from erofs_edge.qemu.verdict import Expected, Verdict, Watch

TIMEOUT = 180.0
"""seconds; a busy machine takes up to four times as long as an idle one (10 s)"""

GOOD = r"(?:^|login: )erofs-edge: slot \S+ is good$"
"""what a system prints once its slot has been marked good"""


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage that was passed, in seconds since QEMU was started."""

    stage: str
    title: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Observer:
    """Observes a boot.

    timeout  seconds until the boot counts as failed
    seen     called when a stage is first passed
    log      a file for the whole console
    """

    timeout: float = TIMEOUT
    seen: Callable[[StageTime], None] = lambda stage: None
    log: Path | None = None

    def follow(self, command: list[str], watch: Watch, console: Console) -> tuple[Verdict, list[StageTime]]:
        """The verdict on a boot, and the stages that it passed. Raises ToolError as `run` does."""
        passed = list[StageTime]()

        def note(event: Event) -> None:
            name = event.match.name
            if event.match.kind in ("stage", "report") and name not in watch.reached:
                passed.append(StageTime(name, watch.titles[name], round(event.at, 2)))
                self.seen(passed[-1])

        return run(command, watch, console, timeout=self.timeout, seen=note, log=self.log), passed


@dataclass(frozen=True, slots=True)
class SmokeRecord:
    """A boot that went as expected. `tamper`, `damage` and `evidence` are set for a damaged one, `stopped_at` for one
    that was stopped."""

    board: str
    slot: str
    root_hash: str
    qemu: str
    seconds: float
    stages: list[StageTime]
    report: dict[str, str] | None = None
    tamper: str | None = None
    damage: list[str] = field(default_factory=list)
    stopped_at: str | None = None
    evidence: str | None = None


def smoke(
    board: Board,
    out: Path,
    *,
    disk: Path | None = None,
    slot: str | None = None,
    tamper: str | None = None,
    keep: bool = False,
    u_boot: bytes | None = None,
    observer: Observer = Observer(),
) -> SmokeRecord:
    """Boot the build in `out` until the guest has reported, shows a login prompt and has passed the checks of its
    manifest; the disk image is not changed.

    disk    an image other than out/disk.img
    slot    start this slot, whatever the slot state in the image says
    tamper  a scenario of TAMPERS: the boot must fail at its stage and for its reason, or show that it was repaired
    keep    keep what the machine writes to the disk, and require that the slot is marked good
    u_boot  the U-Boot `u_boot.compile.UEFI`, which starts the kernel images instead of firmware and boot loader

    Raises BootCheckError with the failed stage and the last console lines, ToolError without a usable QEMU,
    ErofsEdgeError if `out` contains no build, UsageError for a scenario that the board cannot show.
    """
    change = scenario(tamper, board) if tamper is not None else None
    built, emulator = load_built(out), find_qemu()
    with run_folder(out) as folder:
        disk = disk or built.disk
        if slot is not None or tamper is not None:
            disk = copy_sparse(disk, folder / "disk.img")
        damage, chosen = _prepare(disk, board, slot, change)
        wanted = built.smoke if change is None else Smoke()
        extra = (*(CHECKS_DRIVE if _checks(wanted) else ()), *_devices(built.smoke))
        script, wiring = change.script if change else None, Wiring(disk, snapshot=not keep, extra=extra)
        firmware = _firmware(board, out, built, disk, u_boot, folder) if u_boot is not None else None
        command = machine_command(board, built, emulator, folder, wiring, script=script, firmware=firmware)
        expected = Expected(built.root_hash, chosen, data_filesystem(board))
        watch = _watch(expected, change, wanted, TITLES if board.boot.uefi is None else UEFI_TITLES)
        watch.lines |= {GOOD} if keep else set()
        console = Console(tuple(watch.lines))
        verdict, passed = observer.follow(command, watch, console)
    if not verdict.ok:
        what = f"'{tamper}' did not end as expected" if tamper else f"slot {expected.slot} did not boot as expected"
        what += f": stage '{watch.titles[verdict.stage]}'"
        raise failure(what, verdict, console, observer.log, other_build=watch.other_build and tamper is None)
    record = SmokeRecord(
        board.board, expected.slot, expected.root_hash, emulator.version_text, _seconds(passed), passed, watch.report
    )
    if change is None:
        return record
    stopped = verdict.stage if change.stop else None
    return replace(record, tamper=tamper, damage=damage, stopped_at=stopped, evidence=verdict.reason)


def _seconds(passed: list[StageTime]) -> float:
    """Until the system was up, without its own checks."""
    return max((stage.seconds for stage in passed if stage.stage != "checks"), default=0.0)


def _firmware(board: Board, out: Path, built: Built, disk: Path, program: bytes, folder: Path) -> Path:
    """U-Boot with the build's certificate and a script that starts what is on the disk."""
    with Scratch(disk, board) as scratch:
        images = scratch.images()
    return put_firmware(board, program, out, built.key, images, folder)


def _checks(wanted: Smoke) -> bool:
    """Whether the system is asked to check itself."""
    return bool(wanted.units or wanted.commands)


def _devices(wanted: Smoke) -> tuple[str, ...]:
    """Devices that the manifest requires besides the board's own."""
    return (*(GRAPHICS if wanted.graphics else ()), *(WATCHDOG if wanted.watchdog else ()))


def _watch(expected: Expected, change: Tamper | None, wanted: Smoke, titles: Mapping[str, str]) -> Watch:
    """What a boot must show: where it is stopped, what it has repaired, or what the manifest requires."""
    repaired = change is not None and change.stop is None
    stop = change.stop if change else None
    return Watch(expected, stop, _checks(wanted), set(wanted.console), repaired, titles=titles)


def _prepare(disk: Path, board: Board, slot: str | None, change: Tamper | None) -> tuple[list[str], str]:
    """Change the copy of a disk as requested. Returns what was damaged, and the slot that U-Boot will choose."""
    with Scratch(disk, board, writable=slot is not None or change is not None) as scratch:
        if slot is not None:
            scratch.activate(slot)
        damage = scratch.damage(change) if change else []
        if change and change.script:
            damage.append("the boot script")
        return damage, scratch.next_slot()


def data_filesystem(board: Board) -> str:
    """The file system of /var, as reported by the guest."""
    return next((p.filesystem for p in board.disk.partitions.values() if p.filesystem), "tmpfs")
