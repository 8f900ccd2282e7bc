# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge report`: one page about a build."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, size_text, table

PAGE = "report.html"
FOLDER = click.Path(exists=True, path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option("--against", type=FOLDER, metavar="FOLDER", help="An earlier build: what has changed since.")
@click.option("--boot", type=FILE, metavar="FILE", help="What `boot --smoke --json` printed: the boot's stages.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Where the page goes.  [default: report.html]")
@json_option
def report(out: Path, against: Path | None, boot: Path | None, output: Path | None, as_json: bool) -> None:
    """Write a page about the build in OUT: contents, layout, compression, sizes, packages, how to use it.

    The page is one file, loads nothing and needs no script. The same build gives the same page.
    """
    from erofs_edge.report.facts import collect
    from erofs_edge.report.page import write_page

    facts = collect(out, boot)
    since = facts.after(collect(against), str(against)) if against is not None else None
    target = output or Path(PAGE)
    write_page(facts, target, since)
    size = target.stat().st_size
    if as_json:
        emit_json({"file": str(target), "size": size, "files": len(facts.files)})
    else:
        table([("page", target), ("size", size_text(size)), ("paths", len(facts.files))])
