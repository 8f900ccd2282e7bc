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


@click.command()
@click.argument("board", type=click.Path(path_type=Path))
@click.option(
    "--system", type=click.Path(path_type=Path), metavar="MANIFEST",
    help="Put this system in the place of the board's own: a manifest, or a stock one's name.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: out/BOARD.")
@click.option("--jobs", type=click.IntRange(min=1), help="Threads; never changes a byte.")
@click.option("--no-cache", is_flag=True, help="Compress everything anew.")
@click.option("--force", is_flag=True, help="Build even where nothing has changed.")
@click.option(
    "--relock-if-gone", is_flag=True,
    help="Where the mirror has dropped a locked package: lock again into FOLDER/locks and go on.",
)  # fmt: skip
@click.option("--key", metavar="URI", help="Sign with this key instead of the board's sign.key.")
@click.option(
    "--baseline", type=click.Path(exists=True, path_type=Path), metavar="OUT|IMG",
    help="Keep what has not changed where it is in this image, or in that of this output folder: a smaller update.",
)  # fmt: skip
@click.option(
    "--profile", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="What the system uses first, in order: it comes to the front of the image.",
)  # fmt: skip
@click.option("--release", is_flag=True, help="Refuse a development key.")
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
    """Build BOARD (a file, or a stock board's name): system image, signed boot image and disk image, from its files
    and locks alone.

    BOARD may also be a manifest of another kind than a system (an extension, a portable service): NAME.raw is made of
    it, a disk image with hash tree and signature, which systemd takes.

    Equal inputs give equal bytes, on any machine. Where nothing has changed, nothing is done.
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
    extension = not isinstance(loaded.value, Board)
    if extension and (baseline or profile):
        raise UsageError(
            "--baseline and --profile are for boards", hint="`erofs:` of a manifest has words of that name"
        )
    result = build_extension(board, options, step) if extension else build_board(board, options, step)
    for text in result.notes:
        note(f"note: {text}")
    if as_json:
        emit_json({"out": str(out), "fresh": result.fresh, "notes": result.notes, "release": result.record})
    else:
        _show(board, result, bootable=not extension)


def _show(board: Path, result: BuildResult, *, bootable: bool) -> None:
    from erofs_edge.cli.output import size_text, table

    record, out = result.record, result.out
    if not result.fresh:
        click.echo(f"{out} is up to date")
    rows = [
        (str(out / name), size_text(entry["size"]), entry["sha256"][:16]) for name, entry in record["files"].items()
    ]
    table(rows, header=("file", "size", "sha256"))
    click.echo(f"root hash  {record['system']['root_hash'] if bootable else record['root_hash']}")
    if record["sign"]["development"]:
        click.echo(f"signed by  {record['sign']['name']}, a development key: it protects nothing")
    if not bootable:
        return
    click.echo(f"boot it    erofs-edge boot {board} -o {out}")
    click.echo(f"flash it   erofs-edge flash {board} -o {out} --to /dev/sdX --plan")
