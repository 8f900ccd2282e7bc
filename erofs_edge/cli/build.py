# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge build`: from a board file to a disk image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import json_option
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.build.pipeline import BuildResult
    from erofs_edge.manifest.model import Board


@click.command()
@click.argument("board", type=click.Path(path_type=Path))
@click.option(
    "--system", type=click.Path(path_type=Path), metavar="MANIFEST",
    help="Build this system instead of the board's own: a manifest file, or the name of a stock one.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Output folder.  [default: out/BOARD]"
)
@click.option("--jobs", type=click.IntRange(min=1), help="Number of threads; the output is the same for any number.")
@click.option("--no-cache", is_flag=True, help="Compress everything again instead of reusing cached results.")
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
@click.option(
    "--relock-if-gone", is_flag=True,
    help="If the mirror no longer has a locked package, lock again into FOLDER/locks and continue.",
)  # fmt: skip
@click.option("--key", metavar="URI", help="Sign with this key instead of the board's sign.key.")
@click.option(
    "--baseline", type=click.Path(exists=True, path_type=Path), metavar="OUT|IMG",
    help="Keep unchanged content where it is in this earlier image (or output folder), so that updates are smaller.",
)  # fmt: skip
@click.option(
    "--profile", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="A profile of what the system reads first (see `trace`): it goes to the front of the image.",
)  # fmt: skip
@click.option("--release", is_flag=True, help="Refuse to sign with a development key.")
@json_option
def build(
    board: Path,
    system: Path | None,
    output: Path | None,
    jobs: int | None,
    no_cache: bool,
    force: bool,
    relock_if_gone: bool,
    key: str | None,
    baseline: Path | None,
    profile: Path | None,
    release: bool,
    as_json: bool,
) -> None:
    """Build BOARD (a board file, or the name of a stock board): the system image, the signed boot image and the disk
    image, from the board's files and locks alone.

    BOARD may also be the manifest of a system extension or a portable service. The result is then NAME.raw, a disk
    image with a hash tree and a signature, ready for systemd.

    The same inputs give the same bytes on any machine. If nothing has changed, nothing is built.

    \b
    Examples:
      erofs-edge build qemu-aarch64
      erofs-edge build boards/gateway.yaml -o out/v2 --baseline out/v1
    """
    from erofs_edge.build.extension import build_extension
    from erofs_edge.build.pipeline import BuildOptions, build_board
    from erofs_edge.cli.output import emit_json, note, step
    from erofs_edge.manifest.load import load_any
    from erofs_edge.manifest.model import Board

    out = output or Path("out") / board.stem
    options = BuildOptions(
        out=out,
        jobs=jobs,
        compression_cache=not no_cache,
        force=force,
        relock=relock_if_gone,
        key=key,
        release=release,
        system=system,
        baseline=baseline,
        profile=profile,
    )
    loaded = load_any(board)
    value = loaded.value if isinstance(loaded.value, Board) else None
    if value is None and (baseline or profile):
        raise UsageError(
            "--baseline and --profile apply to boards only", hint="set them under `erofs:` in the manifest instead"
        )
    result = build_extension(board, options, step) if value is None else build_board(board, options, step)
    for text in result.notes:
        note(f"note: {text}")
    if as_json:
        emit_json({"out": str(out), "fresh": result.fresh, "notes": result.notes, "release": result.record})
    else:
        _show(board, result, value)


def _show(board: Path, result: BuildResult, value: Board | None) -> None:
    from erofs_edge.cli.output import size_text, table

    record, out = result.record, result.out
    if not result.fresh:
        click.echo(f"{out} is up to date")
    rows = [
        (str(out / name), size_text(entry["size"]), entry["sha256"][:16]) for name, entry in record["files"].items()
    ]
    table(rows, header=("file", "size", "sha256"))
    click.echo(f"root hash  {record['root_hash'] if value is None else record['system']['root_hash']}")
    if record["sign"]["development"]:
        click.echo(f"signed by  {record['sign']['name']}, a development key: it protects nothing")
    if value is None:
        return
    if value.qemu is not None:
        click.echo(f"boot it    erofs-edge boot {board} -o {out}")
    click.echo(f"flash it   erofs-edge flash {board} -o {out} --to /dev/sdX --plan")
