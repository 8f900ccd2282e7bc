# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge fs map`: show what is where in an image, as a table or a picture."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.fs_image import IMG, Source, image_options
from erofs_edge.cli.output import emit_json, json_option, size_text, table
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import UsageError


@click.command("map")
@IMG
@click.option(
    "--svg", "as_svg", is_flag=True, help="Draw an SVG picture: rows of bytes, one colour for each kind of content."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="The file for the picture.  [default: standard output]")  # fmt: skip
@image_options
@json_option
def map_(*, image: Source, as_svg: bool, output: Path | None, as_json: bool) -> None:
    """Show how many bytes of IMG are inodes, names, data or padding; with --svg, show where they are in a picture."""
    from erofs_edge.erofs.picture import svg
    from erofs_edge.erofs.regions import map_image

    if output is not None and not as_svg:
        raise UsageError("-o names the file for the picture of --svg", hint="add --svg")
    if as_svg and as_json and output is None:
        raise UsageError("--svg and --json both go to standard output", hint="add -o FILE for the picture")
    with image.opened() as opened:
        found = map_image(opened)
    if as_svg and output is not None:
        write_file(output, svg(found, image.path.name).encode(), "the picture")
    elif as_svg:
        click.echo(svg(found, image.path.name), nl=False)
    if as_json:
        record = {"size": found.size, "image_size": found.image_size, "totals": found.totals()}
        emit_json(record | {"regions": [region._asdict() for region in found.regions]})
    elif not as_svg:
        rows = [(kind, size, size_text(size), f"{size / found.size:.2%}") for kind, size in found.totals().items()]
        table(rows, ("kind", "bytes", "size", "share"))
