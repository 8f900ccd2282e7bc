# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge release --check`: test every promise of a release; one table, one exit code."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.options import Seconds
from erofs_edge.cli.output import emit_json, json_option, step, table
from erofs_edge.errors import UsageError

_FOLDER = click.Path(exists=True, path_type=Path, file_okay=False)


@click.command("release --check")
@click.argument("release", metavar="FOLDER", type=_FOLDER)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PUB",
    help="The public key that must have signed it.  [default: the release's own, which proves nothing to others]",
)
@click.option("--from", "earlier", type=_FOLDER, multiple=True, metavar="FOLDER",
              help="A release in the field, to check the size of its update. May be repeated.")  # fmt: skip
@click.option("--update-budget", metavar="SIZE", help="The most bytes that an update may transfer, for example 20M.")
@click.option("--packages", type=_FOLDER, metavar="FOLDER", help="For the rebuild, look for .deb files here first.")
@click.option(
    "--skip", multiple=True, metavar="NAME", help="Skip this check: boot, tampering, fallback, … May be repeated."
)
@click.option("--timeout", type=Seconds(), metavar="SECONDS",
              help="Time for each boot in QEMU.  [default: 180; 600 for all starts of the fallback check]")  # fmt: skip
@json_option
def release_check(
    release: Path,
    key: Path | None,
    earlier: tuple[Path, ...],
    update_budget: str | None,
    packages: Path | None,
    skip: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Check every promise of the release in FOLDER: that it is signed, can be reproduced, boots, stops tampering, falls
    back from a broken slot, and keeps sizes and updates within their budgets. Exits with 4 if one is broken."""
    from erofs_edge.build.record import RELEASE, read_release
    from erofs_edge.build.signing import PUBLIC_KEY
    from erofs_edge.manifest.model import size_bytes
    from erofs_edge.release.gate import PROMISES, Wanted, check_release, refuse_broken
    from erofs_edge.trust.key import read_public_key

    if unknown := [name for name in skip if name not in PROMISES]:
        raise UsageError(f"--skip: no check is called {unknown[0]!r}", hint=f"the checks are {', '.join(PROMISES)}")
    try:
        most = None if update_budget is None else size_bytes(update_budget)
    except ValueError as error:
        raise UsageError(f"not a size: {update_budget!r}", hint="for example 20M") from error
    if most is not None and not earlier:
        raise UsageError("--update-budget needs an earlier release", hint="add --from FOLDER")
    if not (release / RELEASE).exists():
        read_release(release)  # fails if this is not a release; a damaged record counts as a broken promise
    wanted = Wanted(earlier, most, frozenset(skip), packages, timeout)
    rows = check_release(release, read_public_key(key or release / PUBLIC_KEY), wanted, step)
    if as_json:
        emit_json({
            "release": str(release),
            "kept": all(row.kept is not False for row in rows),
            "promises": [
                {"name": row.name, "kept": row.kept, "detail": row.detail, "seconds": row.seconds} for row in rows
            ],
        })  # fmt: skip
    else:
        words = {True: "kept", False: "BROKEN", None: "not tried"}
        table([(words[row.kept], row.name, row.detail, f"{row.seconds:.0f} s") for row in rows])
    refuse_broken(rows, str(release))
