# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge forecast`: what an update costs devices that have an earlier release."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, size_text, table

_FOLDER = click.Path(exists=True, path_type=Path, file_okay=False)


@click.command()
@click.argument("new", type=_FOLDER)
@click.option("--from", "earlier", type=_FOLDER, multiple=True, required=True, metavar="FOLDER",
              help="A release (or build) that is in the field. May be repeated.")  # fmt: skip
@json_option
def forecast(new: Path, earlier: tuple[Path, ...], as_json: bool) -> None:
    """Estimate what an update to the release in NEW costs: blocks to write, bytes to send, minutes on various links.

    \b
    Example:
      erofs-edge forecast release/v2 --from release/v1
    """
    from erofs_edge.release.forecast import LINKS, forecast_record
    from erofs_edge.release.forecast import forecast as of

    found = [of(old, new) for old in earlier]
    if as_json:
        emit_json(forecast_record(found))
        return
    for old, one in zip(earlier, found, strict=True):
        click.echo(f"from {old} ({one.root_hash[:16]}): {one.written} of {one.blocks} blocks must be written")
        table(
            [
                (way, size_text(size), *(f"{size / rate / 60:.1f} min" for rate in LINKS.values()))
                for way, size in one.methods.items()
            ],
            header=("sent as", "bytes", *LINKS),
        )
