# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge schema`: the JSON Schemas that editors complete and check with."""

from __future__ import annotations

import click


@click.command()
@click.argument("kind", type=click.Choice(["board", "manifest", "lock"]))
def schema(kind: str) -> None:
    """Print the JSON Schema (draft-07) of KIND."""
    from erofs_edge.manifest.schema import schema_text

    click.echo(schema_text(kind), nl=False)
