# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge doctor`: what the machine has and lacks, and the one command that fixes it."""

from __future__ import annotations

import click

from erofs_edge.cli.output import emit_json, json_option, table

DOES = {"build": "build boards", "lock": "update locks", "boot": "boot in QEMU", "test": "run the tests"}


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check what this machine has and lacks, without changing anything or using the network.

    Exits with 0 if boards can be built here, and with 1 if something that a build needs is missing.
    """
    from erofs_edge.doctor import Purpose, examine, ready

    findings = examine()
    purposes: tuple[Purpose, ...] = ("build", "lock", "boot", "test")
    able = {purpose: ready(findings, purpose) for purpose in purposes}
    if as_json:
        emit_json({"ready": able, "findings": findings})
    else:
        table(("ok" if f.ok else "MISSING", f.purpose, f.name, f.seen) for f in findings)
        click.echo()
        for purpose in purposes:
            mends = dict.fromkeys(f.mend for f in findings if f.purpose == purpose and f.mend)
            click.echo(f"{DOES[purpose]}: {'yes' if able[purpose] else 'not yet'}")
            for mend in mends:
                click.echo(f"  {mend}")
    return 0 if able["build"] else 1
