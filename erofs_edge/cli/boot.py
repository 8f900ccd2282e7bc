# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge boot``: boot a built board in QEMU, interactively or unattended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.boot_diskless import boot_diskless, diskless_options, refuse_without
from erofs_edge.cli.boot_files import check_disk, check_log
from erofs_edge.cli.built import built, check_built
from erofs_edge.cli.options import Seconds
from erofs_edge.cli.output import emit_json, json_option, note
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.manifest.load import Loaded
    from erofs_edge.manifest.model import Board
    from erofs_edge.qemu.fallback import FallbackRecord
    from erofs_edge.qemu.smoke import Observer, SmokeRecord, StageTime

FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True)
class Trial:
    """What the options want of the disk and its slots. Without any, the build's own disk is started as it is."""

    disk: Path | None = None
    slot: str | None = None
    tamper: str | None = None
    falls_back: bool = False
    scenario: str | None = None
    keep: bool = False
    u_boot: bool = False

    @property
    def chooses(self) -> bool:
        """Whether a slot must fail and another one come up."""
        return self.falls_back or self.scenario is not None

    @property
    def judged(self) -> bool:
        """Whether --smoke is implied."""
        return self.tamper is not None or self.chooses or self.keep or self.u_boot

    def check(self) -> None:
        """Raises UsageError for options that cannot be combined."""
        if self.keep and (self.disk is None or self.slot or self.tamper or self.scenario):
            raise UsageError(
                "--keep needs --disk, and cannot be combined with --slot, --tamper or --scenario",
                hint="give --keep and --disk FILE alone",
            )
        if self.u_boot and (self.chooses or self.tamper == "loader"):
            raise UsageError(
                "--u-boot cannot be combined with --falls-back, --scenario or --tamper loader:"
                " U-Boot does not count the starts of UEFI images, and starts them without systemd-boot"
            )
        if self.chooses and (self.slot or self.tamper):
            raise UsageError("--falls-back and --scenario choose the slot themselves")


@click.command()
@click.argument("board", metavar="BOARD", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The folder in which BOARD was built.  [default: out/BOARD]",
)
@click.option("--disk", type=FILE, metavar="FILE", help="Boot this disk image; interactively, its changes are kept.")
@click.option("--slot", metavar="NAME", help="Start this slot, whatever the disk's slot state says.")
@click.option("--smoke", is_flag=True, help="Test the whole boot chain unattended, then exit (code 9 on failure).")
@click.option(
    "--tamper",
    metavar="WHAT",
    help="Damage or forge a copy of the disk and check that the boot is stopped (implies --smoke).",
)
@click.option(
    "--falls-back",
    is_flag=True,
    help="Check that the next slot fails and that the board falls back to a slot with this build (implies --smoke).",
)
@click.option(
    "--scenario", metavar="WHAT", help="Like --falls-back, on a copy of the disk whose slot b has the fault WHAT."
)
@click.option("--keep", is_flag=True, help="Keep what the machine writes to --disk (implies --smoke).")
@click.option(
    "--u-boot", "u_boot", is_flag=True, help="Use our U-Boot as the firmware of a UEFI board (implies --smoke)."
)
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="Give up after this long.  [default: 180; with --falls-back or --scenario 600 for all starts]",
)
@click.option("--log", type=FILE, metavar="FILE", help="With --smoke, write all console output to this file.")
@click.option(
    "--forward",
    "forwards",
    multiple=True,
    metavar="HOST:GUEST",
    help="Interactively, forward TCP port HOST of this machine to port GUEST of the board.",
)
@diskless_options
@json_option
def boot(
    board: Path,
    out: Path | None,
    disk: Path | None,
    slot: str | None,
    smoke: bool,
    tamper: str | None,
    falls_back: bool,
    scenario: str | None,
    keep: bool,
    u_boot: bool,
    timeout: float | None,
    log: Path | None,
    forwards: tuple[str, ...],
    as_json: bool,
    **of_diskless: Any,
) -> None:
    """Boot a built BOARD in QEMU.

    Interactively, Ctrl-A X quits, and what the machine writes to its disk is discarded unless --disk names a file.

    With --smoke the boot is tested unattended: the exit code is 0 only if the guest itself has reported a verified
    EROFS root with the expected root hash, the expected slot and a writable /var, and shows a login prompt.

    --tamper and --scenario list their values if WHAT is unknown.

    \b
    Examples:
      erofs-edge boot qemu-aarch64
      erofs-edge boot qemu-aarch64 --smoke
    """
    trial = Trial(disk, slot, tamper, falls_back, scenario, keep, u_boot)
    if of_diskless["diskless"]:
        if not smoke or trial != Trial() or forwards:
            raise UsageError("--diskless needs --smoke, and cannot be combined with options about a disk or its slots")
        boot_diskless(board, out, of_diskless, _observer(trial, timeout, log), as_json=as_json)
        return
    refuse_without(of_diskless)
    smoke = smoke or trial.judged
    trial.check()
    if not smoke and (timeout or log or as_json):
        raise UsageError("--timeout, --log and --json need --smoke", hint="add --smoke")
    if smoke and forwards:
        raise UsageError("--forward cannot be combined with --smoke: the machine then has no network")
    pairs = _port_pairs(forwards)
    loaded, folder = _ready(board, out, trial, log, kept=keep or not smoke)
    if not smoke:
        from erofs_edge.qemu.terminal import terminal

        terminal(loaded.value, folder, disk=disk, slot=slot, forwards=pairs, say=note)
        return
    run = _fall_back if trial.chooses else _smoke
    record, summary = run(loaded.value, folder, trial, _observer(trial, timeout, log))
    if as_json:
        emit_json(record)
    else:
        click.echo(summary)


def _ready(board: Path, out: Path | None, trial: Trial, log: Path | None, *, kept: bool) -> tuple[Loaded[Board], Path]:
    """Return the board and the folder of its build, after checking all that depends on them."""
    loaded, folder = built(board, out)
    if trial.u_boot and loaded.value.boot.uefi is None:
        raise UsageError(f"board '{loaded.value.board}' has no UEFI images that U-Boot could start")
    check_built(board, out, folder)
    check_log(log, folder, trial.disk)
    if trial.disk is not None:
        check_disk(trial.disk, folder, kept=kept)
    return loaded, folder


def _observer(trial: Trial, timeout: float | None, log: Path | None) -> Observer:
    from erofs_edge.qemu import fallback, smoke

    return smoke.Observer(timeout or (fallback if trial.chooses else smoke).TIMEOUT, _tell, log)


def _smoke(board: Board, out: Path, trial: Trial, observer: Observer) -> tuple[SmokeRecord, str]:
    """Returns the record and its summary."""
    from erofs_edge.qemu.smoke import smoke
    from erofs_edge.qemu.stages import TITLES, UEFI_TITLES

    record = smoke(
        board, out, disk=trial.disk, slot=trial.slot, tamper=trial.tamper, keep=trial.keep,
        u_boot=_program() if trial.u_boot else None, observer=observer,
    )  # fmt: skip
    return record, _summary(record, TITLES if board.boot.uefi is None else UEFI_TITLES)


def _program() -> bytes:
    """Return the locked U-Boot that acts as UEFI firmware, compiled on first use."""
    from erofs_edge.sources.cache import Cache
    from erofs_edge.u_boot.compile import UEFI, compiled

    return compiled(UEFI, Cache()).image


def _tell(stage: StageTime) -> None:
    note(f"{stage.seconds:8.2f} s  {stage.title}")


def _fall_back(board: Board, out: Path, trial: Trial, observer: Observer) -> tuple[FallbackRecord, str]:
    """Returns the record and its summary."""
    from erofs_edge.qemu.fallback import fall_back

    record = fall_back(board, out, disk=trial.disk, scenario=trial.scenario, keep=trial.keep, observer=observer)
    return record, (
        f"{record.board}: slot {record.fell_from} did not work ({record.evidence}) in {record.starts} starts; "
        f"slot {record.slot} is up after {record.seconds:.2f} s"
    )


def _summary(record: SmokeRecord, titles: Mapping[str, str]) -> str:
    if record.tamper:
        ended = f"stopped at stage '{titles[record.stopped_at]}'" if record.stopped_at else "repaired"
        return f"{record.tamper}: changed {', '.join(record.damage)}; {ended}: {record.evidence}"
    told = " ".join(f"{key}={value}" for key, value in (record.report or {}).items())
    return f"{record.board}: slot {record.slot} is up after {record.seconds:.2f} s and reports {told}"


def _port_pairs(forwards: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    pairs = tuple(map(_ports, forwards))
    hosts = [host for host, _ in pairs]
    for host in hosts:
        if hosts.count(host) > 1:
            raise UsageError(f"--forward uses port {host} of this machine twice")
    return pairs


def _ports(text: str) -> tuple[int, int]:
    host, _, guest = text.partition(":")
    if not (host.isdecimal() and guest.isdecimal() and 0 < int(host) < 65536 and 0 < int(guest) < 65536):
        raise UsageError(f"--forward {text!r} is not HOST:GUEST", hint="as in --forward 2222:22")
    return int(host), int(guest)
