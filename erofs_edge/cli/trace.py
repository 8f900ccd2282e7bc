# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge trace``: show recorded reads, and convert them to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, size_text, table
from erofs_edge.cli.to_file import write_file

if TYPE_CHECKING:
    from erofs_edge.trace.record import Trace
    from erofs_edge.trace.report import Report

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.group()
def trace() -> None:
    """Show or convert a trace: what was read of an image, in which order.

    `serve --trace` and `boot --diskless --trace` record traces.

    \b
    Example:
      erofs-edge boot qemu-aarch64 --diskless --smoke --trace boot.trace
      erofs-edge trace report boot.trace --svg boot.svg
      erofs-edge build qemu-aarch64 --profile boot.trace
    """


@trace.command()
@click.argument("file", type=FILE)
@click.option(
    "--image",
    type=FILE,
    metavar="FILE",
    help="The traced image (its root hash must match); adds which kinds of data were read.",
)
@click.option(
    "--svg",
    type=OUTPUT,
    metavar="FILE",
    help="Write a heat map: the image in rows, coloured by when it was first read.",
)
@json_option
def report(file: Path, image: Path | None, svg: Path | None, as_json: bool) -> None:
    """Summarise the trace FILE.

    It shows how much was read, in how many runs, and the long pauses between new reads.
    """
    from erofs_edge.erofs.read import Image
    from erofs_edge.trace.files import image_root_hash
    from erofs_edge.trace.heat import heat_map
    from erofs_edge.trace.record import read_trace
    from erofs_edge.trace.report import report as make_report

    found = read_trace(file)
    if image is not None:
        found.belongs_to(image_root_hash(image))
        with Image(image) as opened:
            made = make_report(found, opened)
    else:
        made = make_report(found)
    if svg is not None:
        write_file(svg, heat_map(found, file.name).encode("utf-8", "surrogateescape"), "the heat map")
    if as_json:
        emit_json({**_fields(made), "share": made.share, "amplification": made.amplification})
    else:
        _show(found, made)


def _fields(made: Report) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(made)


def _show(found: Trace, made: Report) -> None:
    rows: list[tuple[object, ...]] = [
        ("root hash", made.root_hash),
        ("image", size_text(made.image_bytes)),
        ("touched", f"{size_text(made.touched_bytes)} ({made.share:.1%})"),
        ("sent", f"{size_text(made.bytes_read)} in {made.requests} requests, {made.amplification:.2f}x"),
        ("runs", f"{made.runs}; {made.runs_sorted} in the order of the image"),
        ("steps back", f"{made.order_broken:.1%}"),
        ("files", made.files),
        ("seconds", f"{made.seconds:.2f}"),
    ]
    rows += [(kind, size_text(size)) for kind, size in made.kinds.items()]
    rows += [
        (f"pause of {gap.seconds:.2f} s", f"before block {gap.block}, read {gap.rank} of {len(found.reads)}")
        for gap in made.gaps
    ]
    table(rows, ("what", "value"))


@trace.command()
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=OUTPUT, metavar="FILE", help="Output file.  [default: standard output]")
def profile(file: Path, output: Path | None) -> None:
    """Turn the trace FILE into a profile for `build`.

    A profile is lines of paths and ranges, which you can edit or use for another system.

    `build --profile` also accepts the trace itself.
    """
    from erofs_edge.erofs.profile import profile_text
    from erofs_edge.trace.record import read_trace

    text = profile_text(read_trace(file).uses())
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text.encode("utf-8", "surrogateescape"), "the profile")
