# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge files`: which part of a system a path comes from, and why that part is there."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, printable, table
from erofs_edge.errors import UsageError


def _named(_ctx: click.Context, _option: click.Parameter, out: Path | None) -> Path:
    if out is None:
        raise UsageError("-o OUT is missing: of which build?", hint="add -o out/BOARD, or the folder of a release")
    return out


_OUT = click.option("-o", "--out", type=click.Path(exists=True, path_type=Path, file_okay=False), callback=_named,
                    metavar="OUT", help="The folder of a build or release.  [required]")  # fmt: skip


@click.group()
def files() -> None:
    """Show which package, overlay or build step put a file into a system, and why."""


@files.command()
@click.argument("path")
@_OUT
@json_option
def which(path: str, out: Path, as_json: bool) -> None:
    """Show what put PATH, or files like '*.so.3', into the system."""
    from erofs_edge.build.contents import read_contents
    from erofs_edge.sbom.query import which as find

    found = find(read_contents(out), path)
    if as_json:
        emit_json([{"path": a.path, "origin": a.origin, "version": a.version} for a in found])
    else:
        table([(a.path, a.origin, a.version) for a in found])


@files.command()
@click.argument("path")
@_OUT
@json_option
def why(path: str, out: Path, as_json: bool) -> None:
    """Show why PATH is in the system.

    That is the chain of dependencies from a package that the manifest or board names down to the file.
    """
    from erofs_edge.build.contents import read_contents
    from erofs_edge.sbom.query import which as find

    found = find(read_contents(out), path)
    if as_json:
        emit_json([{"path": a.path, "origin": a.origin, "chain": a.chain} for a in found])
        return
    for answer in found:
        steps = [*answer.chain[:1], *(f"needs {name}" for name in answer.chain[1:])]
        asked = [f"the manifest or board asks for {steps[0]}", *steps[1:]] if steps else [f"from {answer.origin}"]
        click.echo(printable(f"{answer.path}: {', which '.join(asked)}"))
