# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge flash`: write a built board to a disk or a file, and prove it by reading it back."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step, table
from erofs_edge.errors import DeviceRefusedError, SourceError, UsageError

if TYPE_CHECKING:
    from erofs_edge.flash.execute import RegionResult
    from erofs_edge.flash.plan import Plan
    from erofs_edge.flash.target import Identity, Target

DISK = "disk.img"


@click.command()
@click.argument("what", metavar="BOARD|OUTDIR|IMAGE", type=click.Path(exists=True, path_type=Path))
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Block device or file.")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Where BOARD was built.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be written where, and touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before a block device is overwritten.")
@click.option("--resume", is_flag=True, help="Read first and keep what is right: after a cut, or to write less.")
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@json_option
def flash(
    *,
    what: Path,
    target: Path,
    out: Path | None,
    plan_only: bool,
    yes: bool,
    resume: bool,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Make a disk hold exactly the image of a built board, and read it back.

    Refuses disks that are mounted or in use. A new file gets its name only when all is well.
    """
    from erofs_edge.flash.execute import flash as execute
    from erofs_edge.flash.plan import plan_flash

    image = _image(what, out)
    identity = _identify(target, image)
    plan = plan_flash(image, identity)
    if plan_only:
        _show_plan(plan, identity, as_json=as_json)
        return
    if identity.kind == "block" and not yes:
        _confirm(identity)
    started = time.monotonic()
    opened = _open(target, identity, plan.size)
    try:
        results = execute(plan, opened, step, verify=not no_verify, resume=resume)
    except KeyboardInterrupt:
        note("stopped in between: the target is not complete; the same command with --resume goes on")
        raise
    finally:
        opened.close()
    seconds = time.monotonic() - started
    note(f"Finished. Total time: {seconds:.3f}s")
    _show_results(plan, identity, results, seconds, as_json=as_json)


def _image(what: Path, out: Path | None) -> Path:
    """The disk image that BOARD, OUTDIR or IMAGE means."""
    if what.is_dir():
        image, hint = what / DISK, None
    elif what.suffix in {".yaml", ".yml"}:
        from erofs_edge.manifest.load import load_board

        image = (out or Path("out") / load_board(what).value.board) / DISK
        hint = f"erofs-edge build {what}" + (f" -o {out}" if out else "")
    else:
        return what
    if not image.exists():
        raise SourceError("there is no disk image", where=str(image), hint=hint or "erofs-edge build BOARD")
    return image


def _identify(target: Path, image: Path) -> Identity:
    """What the target is; refused where it must not be written."""
    from erofs_edge.flash import guard
    from erofs_edge.flash.target import Identity

    try:
        info = target.stat()
    except FileNotFoundError:
        if not target.parent.is_dir() or str(target).startswith("/dev/"):
            raise UsageError("no such device or folder", where=str(target), hint="lsblk lists devices") from None
        return Identity(str(target), "file", 0)
    if stat.S_ISBLK(info.st_mode):
        device = target.resolve()
        devno = (os.major(info.st_rdev), os.minor(info.st_rdev))
        guard.refuse_unsafe(device, devno)
        return guard.identify(device, devno)
    if not stat.S_ISREG(info.st_mode):
        raise UsageError("neither a file nor a block device", where=str(target))
    if target.samefile(image):
        raise UsageError("the target is the image itself", where=str(target))
    return Identity(str(target), "file", info.st_size)


def _open(target: Path, identity: Identity, size: int) -> Target:
    from erofs_edge.flash.target import BlockTarget, FileTarget

    if identity.kind == "file":
        return FileTarget(target, size)
    try:
        return BlockTarget(Path(identity.path), identity)
    except PermissionError:
        raise DeviceRefusedError(
            "no permission to write to the device",
            where=identity.path,
            hint="run as root, or as a member of the group that owns it (disk)",
        ) from None
    except OSError as error:
        raise DeviceRefusedError(f"cannot open: {error.strerror}", where=identity.path) from error


def _confirm(identity: Identity) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{identity.path} would be overwritten", hint="--yes if that is meant")
    note(f"{_device_text(identity)}: everything on it will be lost")
    click.confirm("Go on?", abort=True, err=True)


def _device_text(identity: Identity) -> str:
    facts = [identity.model, identity.serial, size_text(identity.size), "removable" if identity.removable else "fixed"]
    if identity.kind == "file":
        facts = [f"file, {size_text(identity.size)}" if identity.size else "new file"]
    return f"{identity.path} ({', '.join(filter(None, facts))})"


def _show_plan(plan: Plan, identity: Identity, *, as_json: bool) -> None:
    if as_json:
        regions = [
            {"name": r.name, "start": r.start, "size": r.size, "data": r.data_bytes, "zeros": r.size - r.data_bytes}
            for r in plan.regions
        ]
        emit_json({"image": plan.image, "size": plan.size, "target": identity, "regions": regions})
        return
    note(f"{plan.image} ({size_text(plan.size)}) to {_device_text(identity)}")
    table(
        [(r.name, f"{r.start:#x}", size_text(r.size), size_text(r.data_bytes)) for r in plan.regions],
        header=("region", "at", "size", "data"),
    )
    note(f"{size_text(plan.data_bytes)} would be written, the rest made zeros; nothing was touched")


def _show_results(
    plan: Plan, identity: Identity, results: list[RegionResult], seconds: float, *, as_json: bool
) -> None:
    if as_json:
        keys = ("name", "start", "size", "written", "zeroed", "kept", "verified", "write_seconds", "verify_seconds")
        regions = [{key: getattr(result, key) for key in keys} for result in results]
        emit_json({"image": plan.image, "target": identity, "seconds": seconds, "regions": regions})
        return
    table(
        [
            (
                r.name,
                f"{r.start:#x}",
                size_text(r.written),
                size_text(r.zeroed),
                size_text(r.kept),
                _rate(r.written + r.zeroed, r.write_seconds),
                "yes" if r.verified == r.size else "no",
            )
            for r in results
        ],
        header=("region", "at", "written", "zeroed", "right already", "rate", "verified"),
    )


def _rate(size: int, seconds: float) -> str:
    return f"{size_text(int(size / seconds))}/s" if size and seconds > 0 else ""
