# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity`: dm-verity hash trees and their parity, with veritysetup's words for options."""

from __future__ import annotations

import os
import uuid as uuids
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, table
from erofs_edge.cli.remote import PathOrAddress, reached
from erofs_edge.cli.verity_discoverable import discoverable
from erofs_edge.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from erofs_edge.verity.check import Ranges
    from erofs_edge.verity.fec import Layout
    from erofs_edge.verity.repair import Repair
    from erofs_edge.verity.source import Place
    from erofs_edge.verity.tree import Superblock, TreeOptions, Verification

IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)
FAR = PathOrAddress(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
ROOTS = click.IntRange(2, 24)


@click.group()
def verity() -> None:
    """dm-verity hash trees and parity, as veritysetup and the kernel read them."""


verity.add_command(discoverable)


@verity.command("format")
@click.argument("image", type=IMAGE)
@click.option("--hash-device", type=FILE, help="Write the tree there instead.")
@click.option("--hash-offset", type=int, help="Byte where the superblock goes (default: after the data).")
@click.option("--data-block-size", type=int, default=4096, show_default=True, help="Bytes, a power of two.")
@click.option("--hash-block-size", type=int, help="Bytes (default: as the data block size).")
@click.option("--hash", "algorithm", type=click.Choice(["sha256", "sha512"]), default="sha256", show_default=True)
@click.option("--salt", help="Hexadecimal, or '-' for none (default: from the image).")
@click.option("--uuid", help="Of the superblock (default: from the image).")
@click.option("--fec-device", type=FILE, help="Write parity there: it lets the kernel, and 'verity repair', correct.")
@click.option("--fec-roots", type=ROOTS, default=2, show_default=True, help="Parity bytes for 255 minus as many bytes.")
@click.option("--fec-offset", type=int, help="Byte where parity goes (default: 0, or after the tree in its own file).")
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
    fec_device: Path | None,
    fec_roots: int,
    fec_offset: int | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Append superblock and hash tree to IMAGE, or write them to --hash-device, and print the root hash."""
    from erofs_edge.verity.fec import write_parity
    from erofs_edge.verity.tree import append, format_tree

    if fec_device and (hash_block_size or data_block_size) != data_block_size:
        raise UsageError("--fec-device wants data and hash blocks of one size")
    size = image.stat().st_size
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
    if fec_device is not None:
        try:
            with Progress(f"parity of {image.name}") as progress:
                layout = write_parity(
                    image, info.superblock, info.hash_offset, fec_device, hash_device=hash_device, roots=fec_roots,
                    fec_offset=fec_offset, jobs=jobs, progress=progress,
                )  # fmt: skip
        except BaseException:
            if hash_device is None:
                os.truncate(image, min(size, info.superblock.data_size))
            raise
        record |= _parity(layout)
    if as_json:
        emit_json(record)
    else:
        table((_title(key) + ":", str(value)) for key, value in record.items())


@verity.command()
@click.argument("image", metavar="IMAGE|URI", type=FAR)
@click.option("--root-hash", required=True, help="Hexadecimal, or @FILE that holds it.")
@click.option("--partition", metavar="NAME", help="IMAGE is a disk, and this partition of it is meant.")
@click.option("--hash-device", type=FAR, metavar="FILE|URI", help="Where the tree is (default: in IMAGE).")
@click.option("--hash-offset", type=int, help="Byte where the superblock is (default: found).")
@click.option("--fec-device", type=IMAGE, help="Check this parity too, or say whether it can repair the damage.")
@click.option("--fec-roots", type=ROOTS, help="Of the parity (default: from its size).")
@click.option("--fec-offset", type=int, default=0, show_default=True, help="Byte where the parity begins.")
@click.option("--jobs", type=click.IntRange(1), help="Threads (default: the CPUs).")
@json_option
def verify(
    *,
    image: Path | str,
    root_hash: str,
    partition: str | None,
    hash_device: Path | str | None,
    hash_offset: int | None,
    fec_device: Path | None,
    fec_roots: int | None,
    fec_offset: int,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check each block of IMAGE and of its tree; say which are bad, and exit with 4 if any is.

    IMAGE is a file, a block device, or an export of another machine (nbd://HOST/EXPORT), which is read once.
    """
    from erofs_edge.verity import fec, tree
    from erofs_edge.verity.repair import repair as correct

    expected, where = _root_hash(root_hash), f"{image}: {partition}" if partition else str(image)
    wrong, repairable = 0, None
    with ExitStack() as stack:
        place = stack.enter_context(reached(image, partition))
        hashes = None if hash_device is None else stack.enter_context(reached(hash_device))
        if fec_device and not (isinstance(place, Path) and isinstance(hashes, Path | None)):
            raise UsageError("parity is checked where image and tree are files or devices of this machine")
        hash_offset = _hash_offset(place, hashes, hash_offset, fec_device, fec_offset, where)
        with Progress(f"verifying {where}") as progress:
            found = tree.verify(
                place, expected, hash_device=hashes, hash_offset=hash_offset, jobs=jobs, progress=progress
            )  # fmt: skip
        record = _found(found, expected) | {"files": (files := _files(place, found))}
        if fec_device and isinstance(place, Path) and isinstance(hashes, Path | None):
            if found.ok:
                covered, fec_fd = stack.enter_context(fec.opened(
                    place, fec_device, hash_device=hashes, hash_offset=hash_offset, roots=fec_roots,
                    fec_offset=fec_offset,
                ))[2:]  # fmt: skip
                with Progress(f"parity of {where}") as progress:
                    wrong = fec.wrong_parity(covered, fec_fd, jobs=jobs, progress=progress)
                record |= _parity(covered.layout) | {"ok": not wrong, "wrong_parity_bytes": wrong}
            else:
                repairable = correct(
                    place, expected, fec_device, hash_device=hashes, hash_offset=hash_offset, roots=fec_roots,
                    fec_offset=fec_offset, dry_run=True, jobs=jobs,
                )  # fmt: skip
                record |= _parity(repairable.layout) | {"repairable": repairable.ok}
    if as_json:
        emit_json(record)
    elif found.ok and not wrong:
        click.echo(f"{where}: all {found.superblock.data_blocks} data blocks match root hash {expected.hex()}")
    if not found.ok:
        raise VerificationError(_complaint(found, files), where=where, hint=_advice(found, repairable))
    if wrong:
        raise VerificationError(
            f"{wrong} byte(s) of parity are wrong; the image is as it should be",
            where=str(fec_device),
            hint="to make the parity anew: erofs-edge verity repair",
        )


@verity.command("repair")
@click.argument("image", type=IMAGE)
@click.option("--root-hash", required=True, help="Hexadecimal, or @FILE that holds it.")
@click.option("--from", "sources", type=IMAGE, multiple=True, help="A file that has blocks of IMAGE, anywhere in it.")
@click.option("--fec-device", type=IMAGE, help="Where the parity is; it may be IMAGE.")
@click.option("--fec-roots", type=ROOTS, help="Of the parity (default: from its size).")
@click.option("--fec-offset", type=int, default=0, show_default=True, help="Byte where the parity begins.")
@click.option("--hash-device", type=IMAGE, help="Where the tree is (default: in IMAGE).")
@click.option("--hash-offset", type=int, help="Byte where the superblock is (default: found).")
@click.option("--dry-run", is_flag=True, help="Say what could be repaired; write nothing.")
@click.option("--jobs", type=click.IntRange(1), help="Threads (default: the CPUs).")
@json_option
def repair_(
    *,
    image: Path,
    root_hash: str,
    sources: tuple[Path, ...],
    fec_device: Path | None,
    fec_roots: int | None,
    fec_offset: int,
    hash_device: Path | None,
    hash_offset: int | None,
    dry_run: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Correct the damaged blocks of IMAGE and of its tree in place; exit with 4 if some cannot be.

    From --from files that have the blocks, or from parity. Only blocks that match the root hash afterwards are
    written. Damaged parity of a whole image is made anew.
    """
    from erofs_edge.cli.verity_from import borrow
    from erofs_edge.verity.repair import repair as correct

    expected = _root_hash(root_hash)
    if (fec_device is None) == (not sources):
        raise UsageError("from where? --from FILE or --fec-device FILE, one of them")
    if fec_device is None:
        image_of = sources[0] if hash_offset is None else image
        at = _hash_offset(image_of, hash_device, hash_offset, None, 0, str(image_of))
        borrow(image, expected, sources, hash_device, at, dry_run=dry_run, jobs=jobs, as_json=as_json)
        return
    hash_offset = _hash_offset(image, hash_device, hash_offset, fec_device, fec_offset, str(image))
    with Progress(f"verifying {image.name}") as progress:
        found = correct(
            image, expected, fec_device, hash_device=hash_device, hash_offset=hash_offset, roots=fec_roots,
            fec_offset=fec_offset, dry_run=dry_run, jobs=jobs, progress=progress,
        )  # fmt: skip
    if as_json:
        emit_json(_parity(found.layout) | {
            "root_hash": expected.hex(),
            "ok": found.ok,
            "dry_run": dry_run,
            "repaired_data_blocks": found.repaired_data,
            "repaired_hash_blocks": found.repaired_hash,
            "corrected_bytes": found.corrected,
            "lost_data_blocks": found.lost_data,
            "lost_hash_blocks": found.lost_hash,
            "unproven_data_blocks": found.unproven,
            "parity_bytes": found.parity,
        })  # fmt: skip
    else:
        click.echo(f"{image}: {_repaired(found, dry_run)}")
    if not found.ok:
        raise VerificationError(
            f"beyond repair: {_listed(found.lost_data, found.lost_hash, found.unproven)}",
            where=str(image),
            hint="write the image anew",
        )


@verity.command()
@click.argument("image", metavar="IMAGE|URI", type=FAR)
@click.option("--partition", metavar="NAME", help="IMAGE is a disk, and this partition of it is meant.")
@click.option("--hash-offset", type=int, help="Byte where the superblock is (default: found).")
@json_option
def dump(*, image: Path | str, partition: str | None, hash_offset: int | None, as_json: bool) -> None:
    """Show the superblock in IMAGE, or in a hash device, and the sizes of data and tree."""
    from erofs_edge.verity import tree

    with reached(image, partition) as place:
        if hash_offset is None:
            found = tree.find_superblock(place)
            hash_offset = found if found is not None else _after_erofs(place) or 0
        sb = tree.read_superblock(place, hash_offset)
    start, end = sb.start_block(hash_offset), sb.end(hash_offset)
    record = _described(sb) | {
        "data_size": sb.data_size,
        "hash_offset": hash_offset,
        "hash_start_block": start,
        "hash_blocks": end // sb.hash_block_size - start,
        "hash_levels": len(sb.levels(hash_offset)),
        "tree_end": end,
    }
    if as_json:
        emit_json(record)
    else:
        table((_title(key) + ":", str(value)) for key, value in record.items())


def _found(found: Verification, expected: bytes) -> dict[str, object]:
    return _described(found.superblock) | {
        "hash_offset": found.hash_offset,
        "root_hash": expected.hex(),
        "ok": found.ok,
        "bad_data_blocks": found.bad_data,
        "bad_hash_blocks": found.bad_hash,
        "unproven_data_blocks": found.unproven,
    }


def _complaint(found: Verification, files: list[str]) -> str:
    hit = f"; files hit: {', '.join(files)}" if files else ""
    return f"does not match the root hash; {_listed(found.bad_data, found.bad_hash, found.unproven)}{hit}"


def _listed(data: Ranges, hashes: Ranges, unproven: Ranges) -> str:
    kinds = {"bad data": data, "bad hash": hashes, "unproven data": unproven}
    return "; ".join(f"{blocks.total} {kind} block(s): {blocks}" for kind, blocks in kinds.items() if blocks)


def _files(image: Place, found: Verification) -> list[str]:
    """The files of an EROFS image that its bad blocks hit."""
    from erofs_edge.verify.system import files_of
    from erofs_edge.verity.source import opened

    if not found.bad_data:
        return []
    with opened(image) as source:
        return files_of(source, 0, found.superblock, found.bad_data)


def _advice(found: Verification, repairable: Repair | None) -> str | None:
    if found.unproven.total == found.superblock.data_blocks and (repairable is None or not repairable.ok):
        return "the top of the tree does not match: is this the root hash of this image?"
    if repairable is None:
        return None
    if repairable.ok:
        return "all of it can be repaired: erofs-edge verity repair"
    lost = _listed(repairable.lost_data, repairable.lost_hash, repairable.unproven)
    return f"erofs-edge verity repair would leave {lost}"


def _repaired(found: Repair, dry_run: bool) -> str:
    data, hashes = found.repaired_data, found.repaired_hash
    parts = [
        f"{blocks.total} {kind} block(s): {blocks}" for kind, blocks in (("data", data), ("hash", hashes)) if blocks
    ]
    if parts:
        verb = "can repair" if dry_run else "repaired"
        return f"{verb} {'; '.join(parts)} ({found.corrected} bytes)"
    return f"made {found.parity} bytes of parity anew" if found.parity else "nothing repaired"


def _parity(layout: Layout) -> dict[str, object]:
    return {
        "fec_roots": layout.roots,
        "fec_offset": layout.offset,
        "fec_blocks": layout.blocks,
        "fec_size": layout.parity_size,
    }


def _hash_offset(
    image: Place,
    hash_device: Place | None,
    hash_offset: int | None,
    fec_device: Path | None,
    fec_offset: int,
    where: str,
) -> int:
    """Where the superblock is: as given, at 0 of a hash device, found in the image."""
    from erofs_edge.verity.tree import find_superblock

    if hash_offset is not None:
        return hash_offset
    if hash_device is not None:
        return 0
    found = find_superblock(image)
    if found is None and fec_device is not None and isinstance(image, Path) and os.path.samefile(image, fec_device):
        found = find_superblock(image, fec_offset)
    if found is None:
        found = _after_erofs(image)
    if found is None:
        raise UsageError("no hash tree found", where=where, hint="--hash-offset BYTES or --hash-device FILE")
    return found


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
    return "UUID" if key == "uuid" else key.replace("_", " ").capitalize().replace("Fec", "FEC")


def _after_erofs(image: Place) -> int | None:
    """Where an EROFS file system in `image` ends, if that is what it holds: the tree of a padded slot is there."""
    from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET, SUPERBLOCK, Superblock
    from erofs_edge.verity.blocks import read_exactly
    from erofs_edge.verity.source import opened

    with opened(image) as source:
        raw = read_exactly(source, SUPERBLOCK.size, SUPER_OFFSET)
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
