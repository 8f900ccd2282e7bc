# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge diff`: what differs between two builds, disks, images or files, and why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, one_line, printable, table

if TYPE_CHECKING:
    from erofs_edge.diff.report import Change, Report

SHOWN = 40
"""changes printed without --detail"""
DIFFERENT = 5
"""the exit code"""


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--path", "globs", multiple=True, metavar="GLOB",
              help="Show only changes whose place matches ('*libssl*', '*> /etc/*'). May be repeated.")  # fmt: skip
@click.option("--detail", is_flag=True, help="Show every change, with the lines, sections or values that differ.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the comparison as an HTML page.",
)
@json_option
def diff(old: Path, new: Path, globs: tuple[str, ...], detail: bool, html: Path | None, as_json: bool) -> int:
    """Explain how two builds, releases, disks, images or files differ: in partitions, FIT, inodes, content, placement.

    Exits with 0 if nothing differs and with 5 if something does.

    \b
    Example:
      erofs-edge diff out/v1 out/v2 --path '*> /etc/*' --detail
    """
    from erofs_edge.diff.paths import compare_paths

    report = compare_paths(old, new)
    changes = [
        change
        for change in report.changes
        if not globs or any(fnmatchcase(f"{change.where} {change.what}", glob + "*") for glob in globs)
    ]
    if html is not None:
        from erofs_edge.diff.page import write_page

        write_page(report, html)
    if as_json:
        emit_json(_record(report, changes))
    else:
        _show(report, changes, detail=detail)
        if html is not None:
            note(f"the full comparison: {html}")
    return 0 if report.equal else DIFFERENT


def _record(report: Report, changes: list[Change]) -> dict[str, object]:
    return {
        "old": report.old,
        "new": report.new,
        "equal": report.equal,
        "summary": report.summary,
        "packages": [
            {"image": p.image, "name": p.name, "old": p.old, "new": p.new, "files": p.files, "blocks": p.blocks}
            for p in report.packages
        ],
        "changes": changes,
        "compared": report.compared,
        "dropped": report.dropped,
    }


def _show(report: Report, changes: list[Change], *, detail: bool) -> None:
    if report.equal:
        names = one_line(", ".join(report.compared[:8]))
        click.echo(f"no differences in {len(report.compared)} compared: {names}")
        return
    for sentence in report.summary:
        click.echo(printable(sentence))
    if report.packages:
        rows = [(p.text, p.files, p.blocks) for p in report.packages]
        table(rows if detail else rows[:SHOWN], header=("package", "files", "blocks"))
        if not detail and len(rows) > SHOWN:
            note(f"{len(rows) - SHOWN} more packages with --detail")
    shown = changes if detail else _without_packages(report, changes)[:SHOWN]
    if detail:
        for change in shown:
            click.echo(printable("  ".join(cell for cell in _row(change) if cell)))
            for line in change.detail:
                click.echo(printable(f"    {line}"))
    elif shown:
        table([_row(change) for change in shown])
    if len(shown) < len(changes):
        note(f"{len(changes) - len(shown)} more changes with --detail")
    if report.dropped:
        note(f"{report.dropped} further changes were found, but not kept")


def _without_packages(report: Report, changes: list[Change]) -> list[Change]:
    """Return the differences that neither the table of packages nor the summary already shows."""
    named = {package.name for package in report.packages}
    return [change for change in changes if change.package not in named and change.what != "mtime"]


def _row(change: Change) -> tuple[str, str, str, str]:
    values = " → ".join(value for value in (change.old, change.new) if value is not None)
    return change.where or change.layer, change.what, values, change.why
