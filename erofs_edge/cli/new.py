# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge new`: create your own product, outside this repository."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--board", required=True, metavar="BOARD", help="The stock board to extend.")
@click.option("--system", metavar="MANIFEST", help="The stock system to extend.  [default: the board's]")
@json_option
def new(name: Path, board: str, system: str | None, as_json: bool) -> None:
    """Create a product in the new folder NAME: a board file that extends a stock board, a manifest, a folder for your
    own files, and lock files.

    The product can be built right away. Its README describes the next steps.

    \b
    Example:
      erofs-edge new gateway --board qemu-aarch64
    """
    from erofs_edge.product import make_product

    made = make_product(name, board=board, system=system)
    if as_json:
        record = {"folder": made.folder, "board": made.board, "system": made.system, "files": made.files}
        emit_json(record)
        return
    click.echo("\n".join(str(made.folder / path) for path in made.files))
    click.echo(f"build it   cd {made.folder} && erofs-edge build {made.board.stem}")
