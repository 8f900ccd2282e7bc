# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge push``: images and builds to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, size_text, step, table
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.registry.push import Pushed
    from erofs_edge.sources.oci.reference import Reference

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("what", metavar="OUTDIR|IMAGE", type=click.Path(exists=True, path_type=Path))
@click.argument("reference", metavar="REGISTRY/NAME[:TAG]")
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=FILE,
    help="A data device of IMAGE, in the image's order. May be repeated.",
)
@click.option(
    "--arch", default="arm64", show_default=True, help="The architecture of a container image, by its Debian name."
)
@click.option(
    "--piece",
    metavar="SIZE",
    help="Split files into pieces of this size.  [default: 256K for a build; not split for IMAGE]",
)
@click.option(
    "--layer-type", type=click.Choice(["erofs", "oci"]), default="erofs", show_default=True,
    help="The media type of a container image's layer: vnd.erofs.layer.v1, or vnd.oci.image.layer.v1.erofs, which"
    " containerd 2.1 expects.",
)  # fmt: skip
@click.option("--key", metavar="URI", help="Sign what is pushed with this key: file:PATH, pkcs11:…, command:…")
@click.option(
    "--sbom", "bills", multiple=True, type=FILE, help="Attach a bill of materials (CycloneDX or SPDX). May be repeated."
)
@click.option("--plain-http", is_flag=True, help="Use HTTP without TLS for a registry on another machine.")
@json_option
def push(
    what: Path,
    reference: str,
    devices: tuple[Path, ...],
    arch: str,
    piece: str | None,
    layer_type: str,
    key: str | None,
    bills: tuple[Path, ...],
    plain_http: bool,
    as_json: bool,
) -> None:
    """Store an image, or a build with its documents, in an OCI registry. Data that is already there is not sent again.

    A single EROFS image becomes a container image that containerd's EROFS snapshotter can use directly. A build is
    split into pieces, so that the next version sends only new ones. Credentials are those of docker or podman login.

    \b
    Example:
      erofs-edge push out/qemu-aarch64 registry.example/gateway:v1 --key file:release.pem
    """
    from erofs_edge.registry.artifact import LAYERS
    from erofs_edge.registry.gather import gather
    from erofs_edge.registry.push import push as send
    from erofs_edge.registry.remote import open_remote
    from erofs_edge.registry.signature import bill, papers_of, signature
    from erofs_edge.sources.oci.reference import parse_reference
    from erofs_edge.trust.signer import open_signer

    target = parse_reference(reference)
    if target.digest:
        raise UsageError("cannot push to a digest", hint="give a tag, or none for latest")
    signer = open_signer(key) if key else None
    papers = [bill(path) for path in bills] + (list(papers_of(what)) if what.is_dir() else [])
    _ask(target, plain_http=plain_http)
    with step(f"hashing {what.name}") as progress:
        layer = LAYERS[layer_type]
        value, cuts = gather(what, devices=devices, arch=arch, piece=piece_size(piece), layer=layer, progress=progress)
    with step(f"push to {target}") as progress:
        remote, name = open_remote(target, plain_http=plain_http), f"{target.registry}/{target.name}"
        signed = (lambda sha256: [signature(name, sha256, signer), *papers]) if signer else (lambda _: papers)
        done = send(value, cuts, remote, signed, progress)
    _show(done, target, as_json=as_json)


def _show(done: Pushed, target: Reference, *, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "reference": str(target),
                "digest": f"sha256:{done.sha256}",
                "blobs": done.blobs,
                "bytes": done.bytes,
                "sent_blobs": done.sent_blobs,
                "sent_bytes": done.sent_bytes,
                "attached": [{"kind": kind, "digest": f"sha256:{sha256}"} for kind, sha256 in done.attached],
            }
        )
        return
    table(
        [
            ("sent", f"{done.sent_blobs} blobs, {size_text(done.sent_bytes)}"),
            ("already there", f"{done.blobs - done.sent_blobs} blobs, {size_text(done.bytes - done.sent_bytes)}"),
            *(("attached", kind) for kind, _ in done.attached),
            ("digest", f"{target.registry}/{target.name}@sha256:{done.sha256}"),
        ]
    )


def _ask(target: Reference, *, plain_http: bool) -> None:
    """A registry that is down, or lets nobody in, is told of before anything is hashed."""
    from erofs_edge.registry.remote import open_remote

    remote = open_remote(target, plain_http=plain_http)
    try:
        remote.has_manifest(target.tag)
    finally:
        remote.close()


def piece_size(text: str | None) -> int | None:
    """Bytes of `--piece`. Raises UsageError where it is no multiple of 32K up to 1G."""
    if text is None:
        return None
    from erofs_edge.registry.artifact import BLOCK

    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    size = int(number) * unit if number.isascii() and number.isdigit() and len(number) < 12 else 0
    if not 0 < size <= 1 << 30 or size % BLOCK:
        raise UsageError(f"--piece {text}: not a valid size", hint="a multiple of 32K, at most 1G")
    return size
