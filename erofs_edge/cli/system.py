# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge system`: how a manifest's packages are configured, and whether both ways give the same result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import json_option

if TYPE_CHECKING:
    from erofs_edge.sources.debian.scripted.compare import Difference

STOCK_BOARD = "qemu-aarch64.yaml"
board_option = click.option(
    "--board", type=click.Path(path_type=Path),
    help="The board whose kernel runs the scripts.  [default: qemu-aarch64, from boards/ beside the manifest's folder]",
)  # fmt: skip


@click.group()
def system() -> None:
    """Run the maintainer scripts of a manifest's packages, or compare their result with the declarative one."""


@system.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@board_option
@click.option(
    "--check-reproducible",
    is_flag=True,
    help="Run the scripts twice and list what differs, with the package it belongs to.",
)
@json_option
def configure(manifest: Path, board: Path | None, check_reproducible: bool, as_json: bool) -> None:
    """Run the packages' maintainer scripts in QEMU.

    A cached result is used if there is one.
    """
    from erofs_edge.build.compare import check_reproducible as check
    from erofs_edge.build.compare import subject
    from erofs_edge.build.scripted import run_scripts
    from erofs_edge.cli.output import emit_json, note, step
    from erofs_edge.sources.cache import Cache

    cache = Cache()
    with step("packages") as progress:
        one = subject(manifest, _board(manifest, board), cache, progress)
    start = time.monotonic()
    with step("maintainer scripts", unit="packages") as progress:
        if check_reproducible:
            made = check(one, cache, progress)
        else:
            made = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages, progress=progress)
    seconds = time.monotonic() - start
    files = sum(1 for _ in made.tree.walk())
    for account in made.unpinned:
        note(f"note: {account}: no lock pins its id; name it under `users:` or `groups:` and run erofs-edge lock")
    if as_json:
        emit_json(
            {
                "manifest": manifest,
                "packages": len(one.packages),
                "files": files,
                "seconds": round(seconds, 3),
                "unpinned": made.unpinned,
                "reproducible": True if check_reproducible else None,
            }
        )
    else:
        twice = ", the same twice" if check_reproducible else ""
        click.echo(f"{manifest}: {len(one.packages)} packages, {files} files{twice}")


@system.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@board_option
@click.option(
    "--explained",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of explanations, in addition to the built-in ones.",
)
@click.option("--all", "show_all", is_flag=True, help="List explained differences too.")
@json_option
def compare(manifest: Path, board: Path | None, explained: Path | None, show_all: bool, as_json: bool) -> int:
    """Compare the declarative result with that of the scripts.

    Exits with 1 if any difference is not explained.
    """
    from erofs_edge.build.compare import compare_ways, subject
    from erofs_edge.cli.output import emit_json, step
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.debian.scripted.compare import read_explanations

    explanations = [*(read_explanations(explained) if explained else []), *read_explanations()]
    cache = Cache()
    with step("packages") as progress:
        one = subject(manifest, _board(manifest, board), cache, progress)
    with step("maintainer scripts", unit="packages") as progress:
        found = compare_ways(one, explanations, cache, progress)
    open_ones = [difference for difference in found if not difference.why]
    if as_json:
        emit_json({"manifest": manifest, "unexplained": len(open_ones), "differences": found})
    else:
        for difference in found if show_all else open_ones:
            click.echo(_text(difference))
        click.echo(f"{manifest}: {len(found)} differences, {len(open_ones)} not explained")
    return int(bool(open_ones))


def _board(manifest: Path, board: Path | None) -> Path:
    from erofs_edge.errors import UsageError
    from erofs_edge.manifest.stock import stock_file

    if board is not None:
        return board
    for folder in (manifest.absolute().parent.parent / "boards", Path("boards")):
        if (folder / STOCK_BOARD).exists():
            return folder / STOCK_BOARD
    stock = stock_file(STOCK_BOARD.removesuffix(".yaml"), ("boards",))
    if stock is not None:
        return stock
    raise UsageError("no board found whose kernel could run the scripts", hint="name one: --board BOARD")


def _text(one: Difference) -> str:
    from erofs_edge.cli.output import printable

    lines = [f"{one.path}: {one.kind} ({one.package or 'no package'})"]
    lines += [f"  declarative  {one.first}"] if one.first else []
    lines += [f"  scripts      {one.second}"] if one.second else []
    lines += [f"  explained    {one.why}"] if one.why else []
    return printable("\n".join(lines))
