# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge bundle`: package a build as an update for an existing fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, one_line, size_text, step, table
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.bundle.rauc import Bundle
    from erofs_edge.bundle.sysupdate import Form
    from erofs_edge.trust.certificate import Certificate
    from erofs_edge.trust.key import Signer

_BUILT = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def bundle() -> None:
    """Package a build as an update for RAUC or systemd-sysupdate, and check RAUC bundles.

    \b
    Example:
      erofs-edge bundle rauc out/rpi4 --key file:release.pem -o update.raucb
      erofs-edge bundle check update.raucb --key release.pub
    """


@bundle.command()
@click.argument("out", metavar="OUT", type=_BUILT)
@click.option("--key", metavar="URI", required=True, help="The signing key: file:PATH, pkcs11:…, command:…, dev:NAME.")
@click.option(
    "--certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The certificate that devices know the key by.  [default: the build's, or one made from the key]",
)
@click.option("-o", "--output", type=_FILE, required=True, metavar="FILE", help="The bundle to write, usually *.raucb.")
@click.option(
    "--compatible",
    metavar="TEXT",
    help="The compatible string, as in the devices' system.conf.  [default: BOARD-SYSTEM]",
)
@click.option("--version", metavar="TEXT", help="The version.  [default: rollback index and date of the newest lock]")
@click.option("--description", default="", metavar="TEXT", help="The description in the bundle's manifest.")
@click.option("--block-size", type=int, default=16384, show_default=True,
              help="Block size of the payload in bytes; at least the page size of the devices.")  # fmt: skip
@json_option
def rauc(
    out: Path,
    key: str,
    certificate: Path | None,
    output: Path,
    compatible: str | None,
    version: str | None,
    description: str,
    block_size: int,
    as_json: bool,
) -> None:
    """Write a RAUC bundle of the build in OUT.

    The bundle has the verity format, is signed, and has a block-hash-index for each image.
    """
    from erofs_edge.bundle.rauc import Label, write_bundle
    from erofs_edge.trust.signer import open_signer

    signer = open_signer(key)
    with step("RAUC bundle"):
        certified = _certificate(out, signer, certificate)
        label = Label(compatible, version, description)
        made = write_bundle(out, output, signer, certified, label, block_size=block_size)
    if signer.development:
        note(f"note: '{signer.name}' is a development key: it protects nothing")
    _show(output, made, as_json=as_json)


@bundle.command()
@click.argument("file", metavar="BUNDLE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, metavar="PUB",
              help="The public key or certificate that must have signed it.")  # fmt: skip
@json_option
def check(file: Path, key: Path, as_json: bool) -> None:
    """Check a RAUC bundle: its signature and every byte covered.

    Exits with 4 if something does not match.
    """
    from erofs_edge.bundle.rauc import read_bundle
    from erofs_edge.trust.key import read_public_key

    _show(file, read_bundle(file, read_public_key(key)), as_json=as_json)


@bundle.command()
@click.argument("out", metavar="OUT", type=_BUILT)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="FOLDER",
              help="The folder that the web server offers. Earlier versions in it are kept.")  # fmt: skip
@click.option("--url", required=True, metavar="URL", help="The URL under which devices find FOLDER.")
@click.option("--form", type=click.Choice(["image", "partitions"]), default="image", show_default=True,
              help="One discoverable disk image, or one file for each of its partitions.")  # fmt: skip
@click.option("--version", metavar="TEXT", help="The version.  [default: rollback index and date of the newest lock]")
@json_option
def sysupdate(out: Path, output: Path, url: str, form: Form, version: str | None, as_json: bool) -> None:
    """Add the build in OUT to a folder for systemd-sysupdate."""
    from erofs_edge.bundle.sysupdate import DEFINITIONS, SUMS, write_transfers

    with step("systemd-sysupdate files"):
        made = write_transfers(out, output, url=url, form=form, version=version)
    if as_json:
        emit_json({"folder": str(output), "files": [path.name for path in made]})
        return
    table([(path.name, size_text(path.stat().st_size)) for path in made], header=("file", "size"))
    click.echo(f"definitions  {output / DEFINITIONS}\nsums         {output / SUMS}")


def _certificate(out: Path, signer: Signer, given: Path | None) -> Certificate:
    """Return the given certificate, else the build's if it belongs to the key, else a new one."""
    from erofs_edge.build.record import read_release
    from erofs_edge.build.signing import CERTIFICATE
    from erofs_edge.errors import ErofsEdgeError
    from erofs_edge.trust.certificate import read_certificate, self_signed

    epoch = int(read_release(out)["epoch"])
    if given is not None:
        return read_certificate(given, signer, epoch)
    if not (out / CERTIFICATE).exists():
        return self_signed(signer, epoch)
    try:
        return read_certificate(out / CERTIFICATE, signer, epoch)
    except ErofsEdgeError as error:
        if signer.development:
            raise UsageError(
                "the build was signed with another key than this development key",
                where=str(out),
                hint="use the key of the build, or give --certificate FILE if the devices trust it",
            ) from error
        note(f"note: the build was signed with another key than '{signer.name}': devices need its certificate")
        return self_signed(signer, epoch)


def _show(path: Path, one: Bundle, *, as_json: bool) -> None:
    if as_json:
        emit_json({
            "bundle": str(path), "compatible": one.compatible, "version": one.version, "size": one.size,
            "root_hash": one.root_hash,
            "images": [{"slot": i.name, "size": i.size, "sha256": i.sha256} for i in one.images],
        })  # fmt: skip
        return
    click.echo(one_line(f"{path} ({size_text(one.size)}): {one.compatible}, version {one.version}"))
    table([(i.name, size_text(i.size), i.sha256[:16]) for i in one.images], header=("slot", "size", "sha256"))
