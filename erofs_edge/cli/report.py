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
@click.option(
    "--against", type=FOLDER, metavar="FOLDER", help="An earlier build; the page also shows what has changed since."
)
@click.option(
    "--boot", type=FILE, metavar="FILE", help="The output of `boot --smoke --json`, to show the stages of the boot."
)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="The page to write.  [default: report.html]")
@json_option
def report(out: Path, against: Path | None, boot: Path | None, output: Path | None, as_json: bool) -> None:
    """Write an HTML page about the build in OUT: contents, layout, compression, sizes, packages, how to use it.

    The page is a single file that loads nothing and needs no JavaScript. The same build gives the same page.
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
