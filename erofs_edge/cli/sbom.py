# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge sbom`: bills of materials of a build, and the known vulnerabilities of what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, printable, size_text, table
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import ToolError

if TYPE_CHECKING:
    from erofs_edge.sbom.bill import Bill
    from erofs_edge.sbom.vulnerabilities import Finding

HINT = "pip install 'erofs-edge[sbom]'"
FORMATS = ("cyclonedx", "spdx", "spdx3")
SHOWN = 60
ALIASES = 3
"""of a finding in the table"""


@click.group()
def sbom() -> None:
    """Write bills of materials of a build, and list the known vulnerabilities of its packages.

    \b
    Examples:
      erofs-edge sbom write out/rpi4 --format spdx -o rpi4.spdx.json
      erofs-edge sbom vulnerabilities out/rpi4 --database debian-tracker.json
    """


@sbom.command()
@click.argument("out", metavar="OUT", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--format", "kind", type=click.Choice(FORMATS), default="cyclonedx", show_default=True,
              help="CycloneDX 1.6, SPDX 2.3 or SPDX 3.0.1, all as JSON.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
              help="The file to write.")  # fmt: skip
@json_option
def write(out: Path, kind: str, output: Path, as_json: bool) -> None:
    """Write the bill of materials of the build in OUT."""
    from erofs_edge.sbom.bill import read_bill

    bill = read_bill(out)
    text = _written(bill, kind)
    write_file(output, text.encode(), "the bill of materials")
    unexplained = [one.path for one in bill.files if one.origin == "unexplained"]
    record = {
        "file": str(output),
        "format": kind,
        "size": output.stat().st_size,
        "packages": len(bill.packages),
        "files": len(bill.files),
        "of_packages": len(bill.files) - len(bill.others),
        "unexplained": unexplained,
    }
    if as_json:
        emit_json(record)
    else:
        table([
            ("file", output), ("size", size_text(output.stat().st_size)), ("packages", len(bill.packages)),
            ("files", f"{len(bill.files)}, {record['of_packages']} of them from packages"),
        ])  # fmt: skip
    if unexplained:
        note(f"note: {len(unexplained)} files have no known origin, for example {printable(unexplained[0])}")


def _written(bill: Bill, kind: str) -> str:
    try:
        if kind == "cyclonedx":
            from erofs_edge.sbom.cyclonedx import cyclonedx

            return cyclonedx(bill)
        if kind == "spdx3":
            from erofs_edge.sbom.spdx3 import spdx3

            return spdx3(bill)
        from erofs_edge.sbom.spdx import spdx

        return spdx(bill)
    except ImportError as error:
        raise ToolError(f"the library for {kind} is not installed: {error}", hint=HINT) from error


@sbom.command()
@click.argument("out", metavar="OUT", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--database", required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="The JSON of Debian's security tracker, an OSV file, or a folder of OSV files.")  # fmt: skip
@json_option
def vulnerabilities(out: Path, database: Path, as_json: bool) -> None:
    """List known vulnerabilities of the packages in OUT.

    They are looked up in a database on this machine.
    """
    from erofs_edge.build.contents import read_contents
    from erofs_edge.sbom.vulnerabilities import find_vulnerabilities

    found = find_vulnerabilities(read_contents(out), database)
    if as_json:
        emit_json({"database": str(database), "findings": found})
        return
    if not found:
        click.echo(f"no vulnerabilities of these packages in {database}")
        return
    rows = [(_names(f), f.source, f.version, f.fixed or "no fix", f.urgency, f.note) for f in found]
    table(rows[:SHOWN], header=("id", "source", "version", "fixed in", "urgency", "note"))
    if len(rows) > SHOWN:
        note(f"{len(rows) - SHOWN} more with --json")


def _names(finding: Finding) -> str:
    """An id, and what it is an advisory about."""
    shown = ", ".join(finding.aliases[:ALIASES]) + (" …" if len(finding.aliases) > ALIASES else "")
    return f"{finding.id} ({shown})" if shown else finding.id
