# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge explain`: the resolved form of a board or a manifest, and the origin of each value."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option


@click.command()
@click.argument("file", metavar="BOARD|MANIFEST", type=click.Path(path_type=Path))
@json_option
def explain(file: Path, as_json: bool) -> None:
    """Print BOARD or MANIFEST fully resolved.

    `extends` is applied, defaults are filled in, and each value is shown with the file and line it comes from.
    """
    from erofs_edge.manifest.explain import explain_yaml, origins
    from erofs_edge.manifest.load import load_any
    from erofs_edge.manifest.model import Board

    loaded = load_any(file)
    if not as_json:
        click.echo(explain_yaml(loaded), nl=False)
        return
    emit_json(
        {
            "kind": "board" if isinstance(loaded.value, Board) else "manifest",
            "path": loaded.path,
            "files": loaded.files,
            "digest": loaded.digest,
            "value": loaded.value,
            "origins": origins(loaded),
        }
    )
