# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity discoverable`: turn a built system into an image that systemd's tools open."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option


@click.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", metavar="IMAGE", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def discoverable(out: Path, target: Path, as_json: bool) -> None:
    """Write the system built in OUT as a discoverable disk image.

    IMAGE gets the file system, hash tree and signed root hash as partitions of the Discoverable Partitions
    Specification. systemd-dissect, systemd-nspawn and portable services can open it, and check the signature if
    sign.crt is installed.
    """
    from erofs_edge.build.discoverable import write_discoverable

    root_hash = write_discoverable(out, target).hex()
    if as_json:
        emit_json({"image": str(target), "root_hash": root_hash})
    else:
        click.echo(f"{target}: root hash {root_hash}")
