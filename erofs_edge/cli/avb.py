# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge avb`: Android Verified Boot 2, with avbtool's terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, table
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.trust.avb import Descriptor, VBMeta

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
KEY = click.option(
    "--key", required=True, metavar="URI", help="The signing key, RSA-2048 or RSA-4096: dev:NAME, file:PATH, pkcs11:…"
)
ROLLBACK = click.option(
    "--rollback-index", type=click.IntRange(0), default=0, show_default=True, help="The rollback index."
)
PROP = click.option("--prop", multiple=True, metavar="KEY:VALUE", help="Add a property descriptor. May be repeated.")


@click.group()
def avb() -> None:
    """Make and show Android Verified Boot 2 vbmeta images and footers, as avbtool does.

    `erofs-edge verify` checks them.
    """


@avb.command("add-hashtree-footer")
@click.option(
    "--image",
    required=True,
    type=FILE,
    metavar="FILE",
    help="The image; it is changed in place, and an earlier footer is removed.",
)
@click.option("--partition-name", required=True, metavar="NAME", help="The name of the partition.")
@click.option(
    "--partition-size", required=True, type=int, metavar="BYTES", help="The size of the partition, a multiple of 4096."
)
@KEY
@click.option(
    "--hash-algorithm",
    type=click.Choice(["sha256", "sha512"]),
    default="sha256",
    show_default=True,
    help="The hash algorithm of the tree.",
)
@click.option("--salt", metavar="HEX", help="The salt.  [default: derived from the image]")
@click.option(
    "--fec-num-roots",
    type=click.IntRange(2, 24),
    default=2,
    show_default=True,
    help="Parity bytes in each codeword of 255 bytes.",
)
@click.option("--do-not-generate-fec", is_flag=True, help="Add no parity.")
@ROLLBACK
@PROP
@json_option
def add_hashtree_footer(
    image: Path,
    partition_name: str,
    partition_size: int,
    key: str,
    hash_algorithm: str,
    salt: str | None,
    fec_num_roots: int,
    do_not_generate_fec: bool,
    rollback_index: int,
    prop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Append hash tree, parity, vbmeta and footer to an image."""
    from erofs_edge.build.avb import add_hashtree_footer as add
    from erofs_edge.trust.avb import VBMeta
    from erofs_edge.trust.signer import open_signer

    try:
        raw_salt = None if salt is None else bytes.fromhex(salt)
    except ValueError:
        raise UsageError("--salt is not hexadecimal") from None
    tree = add(
        image,
        partition_name,
        partition_size,
        open_signer(key),
        VBMeta(_properties(prop), rollback_index),
        fec_roots=0 if do_not_generate_fec else fec_num_roots,
        algorithm=hash_algorithm,
        salt=raw_salt,
    )
    _report({"root_digest": tree.root_digest.hex(), "salt": tree.salt.hex(), "fec_size": tree.fec_size}, as_json)


@avb.command("make-vbmeta-image")
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The vbmeta image to write.",
)
@KEY
@ROLLBACK
@PROP
@click.option(
    "--chain-partition",
    multiple=True,
    metavar="NAME:LOCATION:PUB",
    help="Delegate a partition to the public key in the PEM file PUB. May be repeated.",
)
@click.option(
    "--hash-image",
    multiple=True,
    metavar="NAME:FILE",
    help="Add a hash descriptor of a whole partition. May be repeated.",
)
@click.option(
    "--include-descriptors-from-image",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Copy the descriptors of an image that has a footer. May be repeated.",
)
@json_option
def make_vbmeta_image(
    output: Path,
    key: str,
    rollback_index: int,
    prop: tuple[str, ...],
    chain_partition: tuple[str, ...],
    hash_image: tuple[str, ...],
    include_descriptors_from_image: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Make a vbmeta image that vouches for other partitions."""
    from erofs_edge.build.avb import hash_descriptor
    from erofs_edge.trust.avb import Chain, VBMeta, encode_key, write_vbmeta
    from erofs_edge.trust.key import read_public_key, rsa_key
    from erofs_edge.trust.signer import open_signer

    descriptors: list[Descriptor] = []
    for text in chain_partition:
        name, location, path = _split(text, 3, "--chain-partition NAME:LOCATION:PUB")
        if not location.isdecimal():
            raise UsageError("--chain-partition: the rollback index location must be a number")
        public = rsa_key(read_public_key(Path(path), name), "AVB")
        descriptors.append(Chain(name, int(location), encode_key(public, name)))
    descriptors += _properties(prop)
    for text in hash_image:
        name, path = _split(text, 2, "--hash-image NAME:FILE")
        descriptors.append(hash_descriptor(Path(path), name))
    for image in include_descriptors_from_image:
        descriptors += _read(image)[0].descriptors
    raw = write_vbmeta(VBMeta(descriptors, rollback_index), open_signer(key))
    write_file(output, raw, "the vbmeta image")
    _report({"output": str(output), "size": len(raw), "descriptors": len(descriptors)}, as_json)


@avb.command("info-image")
@click.option(
    "--image",
    required=True,
    type=FILE,
    metavar="FILE",
    help="A vbmeta image, or the image of a partition with a footer.",
)
@json_option
def info_image(image: Path, as_json: bool) -> None:
    """Show the content of a vbmeta image, without verifying it.

    For a partition with a footer, this is the vbmeta image that the footer points to.
    """
    import hashlib

    meta, key = _read(image)
    record: dict[str, object] = {
        "rollback_index": meta.rollback_index,
        "rollback_index_location": meta.rollback_index_location,
        "flags": meta.flags,
        "release": meta.release,
        "public_key_sha1": hashlib.sha1(key, usedforsecurity=False).hexdigest(),
        "descriptors": [{"kind": type(d).__name__.lower(), **_fields(d)} for d in meta.descriptors],
    }
    if as_json:
        emit_json(record)
        return
    table((name.replace("_", " "), value) for name, value in record.items() if name != "descriptors")
    for descriptor in meta.descriptors:
        click.echo(f"{type(descriptor).__name__}:")
        table((f"    {name.replace('_', ' ')}", _shown(value)) for name, value in _fields(descriptor).items())


def _read(image: Path) -> tuple[VBMeta, bytes]:
    """Read a vbmeta image, or a partition with a footer. Return (content, public key in it). Raises FormatError."""
    from erofs_edge.errors import FormatError, place_within
    from erofs_edge.trust.avb import FOOTER_SIZE, SIZE_MAX, parse_footer, parse_vbmeta

    with image.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - FOOTER_SIZE, 0))
        try:
            footer = parse_footer(file.read(FOOTER_SIZE), size)
            file.seek(footer.vbmeta_offset if footer else 0)
            meta, key, _, _ = parse_vbmeta(file.read(footer.vbmeta_size if footer else SIZE_MAX))
        except FormatError as error:
            place_within(error, image)
            raise
    return meta, key


def _fields(descriptor: Descriptor) -> dict[str, object]:
    import dataclasses

    return {field.name: getattr(descriptor, field.name) for field in dataclasses.fields(descriptor)}


def _shown(value: object) -> object:
    return value.hex()[:64] if isinstance(value, bytes) else value


def _properties(prop: tuple[str, ...]) -> list[Descriptor]:
    from erofs_edge.trust.avb import Property

    pairs = (_split(text, 2, "--prop KEY:VALUE") for text in prop)
    return [Property(key, value.encode()) for key, value in pairs]


def _split(text: str, count: int, form: str) -> list[str]:
    parts = text.split(":", count - 1)
    if len(parts) != count or not all(parts):
        raise UsageError(f"{text[:80]!r} is not of the form {form}")
    return parts


def _report(record: dict[str, object], as_json: bool) -> None:
    if as_json:
        emit_json(record)
    else:
        table((name.replace("_", " "), value) for name, value in record.items())
