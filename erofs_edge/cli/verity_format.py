# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity format`: make a hash tree, and parity, with veritysetup's words for options."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, table
from erofs_edge.cli.to_file import write_file
from erofs_edge.cli.verity_options import (
    FILE,
    IMAGE,
    ROOTS,
    described,
    hex_of,
    names_image,
    parity_described,
    parity_needs_a_device,
    title,
    uuid_of,
)
from erofs_edge.errors import FormatError, UsageError

if TYPE_CHECKING:
    from erofs_edge.verity.tree import TreeOptions, VerityInfo

_FEC_ROOTS = 2  # as veritysetup and Android have it


@click.command("format")
@click.argument("image", type=IMAGE)
@click.option("--hash-device", type=FILE, metavar="FILE", help="Write the hash tree to this file instead.")
@click.option("--hash-offset", type=int, metavar="BYTES", help="Where the superblock goes.  [default: after the data]")
@click.option(
    "--data-block-size",
    type=int,
    default=4096,
    show_default=True,
    metavar="BYTES",
    help="Size of a data block, a power of two.",
)
@click.option(
    "--hash-block-size", type=int, metavar="BYTES", help="Size of a hash block.  [default: the data block size]"
)
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice(["sha256", "sha512"]),
    default="sha256",
    show_default=True,
    help="The hash algorithm.",
)
@click.option("--salt", metavar="HEX", help="The salt, or '-' for none.  [default: derived from the image]")
@click.option("--uuid", metavar="UUID", help="The UUID of the superblock.  [default: derived from the image]")
@click.option(
    "--root-hash-file",
    type=FILE,
    metavar="FILE",
    help="Also write the root hash to this file, in hexadecimal without a newline.",
)
@click.option(
    "--fec-device",
    type=FILE,
    metavar="FILE",
    help="Write parity to this file, from which the kernel and `verity repair` can correct damage.",
)
@click.option("--fec-roots", type=ROOTS, help=f"Parity bytes in each codeword of 255 bytes.  [default: {_FEC_ROOTS}]")
@click.option(
    "--fec-offset",
    type=int,
    metavar="BYTES",
    help="Where parity goes.  [default: 0, or after the hash tree if it is in the same file]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Number of threads; the output is the same for any number.  [default: number of CPUs]",
)
@json_option
@names_image
def format_(
    *,
    image: Path,
    hash_device: Path | None,
    hash_offset: int | None,
    data_block_size: int,
    hash_block_size: int | None,
    algorithm: str,
    salt: str | None,
    uuid: str | None,
    root_hash_file: Path | None,
    fec_device: Path | None,
    fec_roots: int | None,
    fec_offset: int | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Append superblock and hash tree to IMAGE, and print the root hash.

    With --hash-device they are written to that file instead.

    \b
    Example:
      erofs-edge verity format system.img --root-hash-file root.hash
    """
    from erofs_edge.verity.fec import Places, write_parity

    parity_needs_a_device(fec_device, fec_roots, fec_offset)
    if fec_device and (hash_block_size or data_block_size) != data_block_size:
        raise UsageError("--fec-device needs data and hash blocks of the same size")
    if hash_device is None and hash_offset is None:
        _refuse_a_second_tree(image)
    size = image.stat().st_size
    salted = hex_of("--salt", "" if salt == "-" else salt)
    sizes: TreeOptions = {"block_size": data_block_size, "hash_block_size": hash_block_size}
    options: TreeOptions = {**sizes, "salt": salted, "uuid": uuid_of(uuid), "algorithm": algorithm}
    info = _tree(image, hash_device, hash_offset, jobs, options)
    at = {"hash_offset": info.hash_offset, "hash_start_block": info.hash_start_block}
    record = {**described(info.superblock), **at, "root_hash": info.root_hash.hex()}
    try:
        if fec_device is not None:
            places = Places(
                image, fec_device, hash_device=hash_device, hash_offset=info.hash_offset, fec_offset=fec_offset,
                roots=fec_roots or _FEC_ROOTS,
            )  # fmt: skip
            with Progress(f"parity of {image.name}") as progress:
                layout = write_parity(places, info.superblock, jobs=jobs, progress=progress)
            record |= parity_described(layout)
        if root_hash_file is not None:
            write_file(root_hash_file, info.root_hash.hex().encode(), "the root hash")
    except BaseException:
        if hash_device is None:
            os.truncate(image, min(size, info.superblock.data_size))
        raise
    if as_json:
        emit_json(record)
    else:
        table((title(key) + ":", str(value)) for key, value in record.items())


def _refuse_a_second_tree(image: Path) -> None:
    """Raises UsageError where parity follows the tree of an EROFS; a tree that ends the file is found by `append`."""
    from erofs_edge.verify.system import erofs_end
    from erofs_edge.verity.tree import read_superblock

    if (found := erofs_end(image)) is None:
        return
    with suppress(FormatError):
        read_superblock(image, found)
        raise UsageError(
            "this image already has a hash tree",
            where=f"{image}: offset {found:#x}",
            hint=f"to remove it and the parity behind it: truncate -s {found} {image}",
        )


def _tree(
    image: Path, hash_device: Path | None, hash_offset: int | None, jobs: int | None, options: TreeOptions
) -> VerityInfo:
    from erofs_edge.verity.tree import append, format_tree

    with Progress(f"hashing {image.name}") as progress:
        if hash_device is None:
            return append(image, hash_offset=hash_offset, jobs=jobs, progress=progress, **options)
        return format_tree(image, hash_device, hash_offset=hash_offset or 0, jobs=jobs, progress=progress, **options)
