# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge flash`: write a built board to a disk or a file, and prove it by reading it back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, size_text, step, table
from erofs_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    from erofs_edge.flash.execute import RegionResult
    from erofs_edge.flash.plan import Plan
    from erofs_edge.flash.target import Identity

DISK = "disk.img"


@click.command()
@click.argument("what", metavar="BOARD|OUTDIR|IMAGE", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Write this one image.")
@click.option("--to", "to", required=True, metavar="TARGET", help="Block device, file, or nbd://HOST[:PORT]/EXPORT.")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Where BOARD was built.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be written where, and touch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before a device is overwritten.")
@click.option("--resume", is_flag=True, help="Read first and keep what is right: after a cut, or to write less.")
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@json_option
def flash(
    *,
    what: Path | None,
    image: Path | None,
    to: str,
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
    from erofs_edge.flash.targets import find_target

    if (what is None) == (image is None):
        raise UsageError("what is to be written: BOARD, OUTDIR, IMAGE or --image, one of them")
    image = image or _image(what or Path(), out)
    with find_target(to, image) as target:
        identity = target.identity
        plan = plan_flash(image, identity)
        if plan_only:
            _show_plan(plan, identity, as_json=as_json)
            return
        if identity.kind != "file" and not yes:
            _confirm(identity)
        started = time.monotonic()
        opened = target.open(plan.size)
        try:
            results = execute(plan, opened, step, verify=not no_verify, resume=resume)
            on_wire = opened.bytes_on_wire
        except KeyboardInterrupt:
            note("stopped in between: the target is not complete; the same command with --resume goes on")
            raise
        finally:
            opened.close()
    seconds = time.monotonic() - started
    note(f"Finished. Total time: {seconds:.3f}s")
    _show_results(plan, identity, results, seconds, on_wire, as_json=as_json)


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
    plan: Plan,
    identity: Identity,
    results: list[RegionResult],
    seconds: float,
    on_wire: int | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        keys = ("name", "start", "size", "written", "zeroed", "kept", "verified", "write_seconds", "verify_seconds")
        regions = [{key: getattr(result, key) for key in keys} for result in results]
        written = sum(result.written + result.zeroed for result in results)
        emit_json(
            {
                "image": plan.image,
                "target": identity,
                "seconds": seconds,
                "bytes_total": plan.size,
                "bytes_written": written,
                "bytes_on_wire": written if on_wire is None else on_wire,
                "regions": regions,
            }
        )
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
