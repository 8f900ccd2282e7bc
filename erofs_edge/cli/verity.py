# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity`: dm-verity hash trees, with veritysetup's words for options."""

from __future__ import annotations

import uuid as uuids
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, table
from erofs_edge.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from erofs_edge.verity.tree import Superblock, TreeOptions, Verification

IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def verity() -> None:
    """dm-verity hash trees, as veritysetup and the kernel read them."""


@verity.command("format")
@click.argument("image", type=IMAGE)
@click.option("--hash-device", type=click.Path(dir_okay=False, path_type=Path), help="Write the tree there instead.")
@click.option("--hash-offset", type=int, help="Byte where the superblock goes (default: after the data).")
@click.option("--data-block-size", type=int, default=4096, show_default=True, help="Bytes, a power of two.")
@click.option("--hash-block-size", type=int, help="Bytes (default: as the data block size).")
@click.option("--hash", "algorithm", type=click.Choice(["sha256", "sha512"]), default="sha256", show_default=True)
@click.option("--salt", help="Hexadecimal, or '-' for none (default: from the image's sha256).")
@click.option("--uuid", help="Of the superblock (default: from the image's sha256).")
@click.option("--jobs", type=click.IntRange(1), help="Threads (default: the CPUs; the output is the same).")
@json_option
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
    jobs: int | None,
    as_json: bool,
) -> None:
    """Append superblock and hash tree to IMAGE, or write them to --hash-device, and print the root hash."""
    from erofs_edge.verity.tree import append, format_tree

    options: TreeOptions = {
        "salt": _hex("--salt", "" if salt == "-" else salt),
        "uuid": _uuid(uuid),
        "block_size": data_block_size,
        "hash_block_size": hash_block_size,
        "algorithm": algorithm,
    }
    with Progress(f"hashing {image.name}") as progress:
        if hash_device is None:
            info = append(image, hash_offset=hash_offset, jobs=jobs, progress=progress, **options)
        else:
            info = format_tree(
                image, hash_device, hash_offset=hash_offset or 0, jobs=jobs, progress=progress, **options
            )  # fmt: skip
    record = _described(info.superblock) | {
        "hash_offset": info.hash_offset,
        "hash_start_block": info.hash_start_block,
        "root_hash": info.root_hash.hex(),
    }
    if as_json:
        emit_json(record)
    else:
        table((_title(key) + ":", str(value)) for key, value in record.items())


@verity.command()
@click.argument("image", type=IMAGE)
@click.option("--root-hash", required=True, help="Hexadecimal, or @FILE that holds it.")
@click.option("--hash-device", type=IMAGE, help="Where the tree is (default: in IMAGE).")
@click.option("--hash-offset", type=int, help="Byte where the superblock is (default: found).")
@click.option("--jobs", type=click.IntRange(1), help="Threads (default: the CPUs).")
@json_option
def verify(
    *, image: Path, root_hash: str, hash_device: Path | None, hash_offset: int | None, jobs: int | None, as_json: bool
) -> None:
    """Check each block of IMAGE and of its tree; say which are bad, and exit with 4 if any is."""
    from erofs_edge.verity import tree

    expected = _root_hash(root_hash)
    if hash_offset is None and hash_device is None:
        hash_offset = tree.find_superblock(image) or _after_erofs(image)
        if hash_offset is None:
            raise UsageError("no hash tree found", where=str(image), hint="--hash-offset BYTES or --hash-device FILE")
    with Progress(f"verifying {image.name}") as progress:
        found = tree.verify(
            image, expected, hash_device=hash_device, hash_offset=hash_offset, jobs=jobs, progress=progress
        )  # fmt: skip
    record = _described(found.superblock) | {
        "hash_offset": found.hash_offset,
        "root_hash": expected.hex(),
        "ok": found.ok,
        "bad_data_blocks": found.bad_data,
        "bad_hash_blocks": found.bad_hash,
        "unproven_data_blocks": found.unproven,
    }
    if as_json:
        emit_json(record)
    elif found.ok:
        click.echo(f"{image}: all {found.superblock.data_blocks} data blocks match root hash {expected.hex()}")
    if not found.ok:
        wrong_root = found.unproven.total == found.superblock.data_blocks
        hint = "the top of the tree does not match: is this the root hash of this image?" if wrong_root else None
        raise VerificationError(_complaint(found), where=str(image), hint=hint)


def _complaint(found: Verification) -> str:
    kinds = {"bad data": found.bad_data, "bad hash": found.bad_hash, "unproven data": found.unproven}
    parts = [f"{blocks.total} {kind} block(s): {blocks}" for kind, blocks in kinds.items() if blocks]
    return "does not match the root hash; " + "; ".join(parts)


def _described(sb: Superblock) -> dict[str, object]:
    return {
        "uuid": str(uuids.UUID(bytes=sb.uuid)),
        "data_blocks": sb.data_blocks,
        "data_block_size": sb.data_block_size,
        "hash_block_size": sb.hash_block_size,
        "hash_algorithm": sb.algorithm,
        "salt": sb.salt.hex() or "-",
    }


def _title(key: str) -> str:
    return "UUID" if key == "uuid" else key.replace("_", " ").capitalize()


def _after_erofs(image: Path) -> int | None:
    """Where an EROFS file system in `image` ends, if that is what it holds: the tree of a padded slot is there."""
    from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET, SUPERBLOCK, Superblock

    with image.open("rb") as file:
        file.seek(SUPER_OFFSET)
        raw = file.read(SUPERBLOCK.size)
    if len(raw) < SUPERBLOCK.size:
        return None
    erofs = Superblock(*SUPERBLOCK.unpack(raw))
    return erofs.blocks_lo << erofs.blkszbits if erofs.magic == SUPER_MAGIC and erofs.blkszbits <= 16 else None


def _root_hash(text: str) -> bytes:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("ascii", "replace").strip()
        except OSError as error:
            raise UsageError(f"--root-hash: {error.strerror}", where=text[1:]) from error
    digest = _hex("--root-hash", text)
    if not digest:
        raise UsageError("--root-hash is empty")
    return digest


def _hex(option: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{option}: {text[:80]!r} is not hexadecimal") from None


def _uuid(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return uuids.UUID(text).bytes
    except ValueError:
        raise UsageError(
            f"--uuid: {text[:80]!r} is no UUID", hint="as in 12345678-9abc-4def-8123-456789abcdef"
        ) from None
