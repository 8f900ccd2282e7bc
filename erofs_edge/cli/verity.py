# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity`: dm-verity hash trees and their parity, with veritysetup's words for options."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import Progress, emit_json, json_option, table
from erofs_edge.cli.remote import disk_advice, reached
from erofs_edge.cli.verity_discoverable import discoverable
from erofs_edge.cli.verity_format import format_
from erofs_edge.cli.verity_options import (
    FAR,
    FEC_OFFSET,
    IMAGE,
    ROOTS,
    blocks_text,
    described,
    names_image,
    parity_described,
    parity_needs_a_device,
    root_hash_of,
    title,
)
from erofs_edge.errors import FormatError, UsageError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erofs_edge.verity.check import Ranges
    from erofs_edge.verity.repair import Repair
    from erofs_edge.verity.source import Place
    from erofs_edge.verity.tree import Verification


@click.group()
def verity() -> None:
    """Make, verify and repair dm-verity hash trees and parity, in the format of veritysetup and the kernel."""


verity.add_command(discoverable)
verity.add_command(format_)


@verity.command()
@click.argument("image", metavar="IMAGE|URI", type=FAR)
@click.option("--root-hash", required=True, metavar="HEX|@FILE", help="The root hash, or a file that holds it.")
@click.option("--partition", metavar="NAME", help="Read this partition of the disk IMAGE.")
@click.option("--hash-device", type=FAR, metavar="FILE|URI", help="Where the hash tree is.  [default: in IMAGE]")
@click.option(
    "--hash-offset", type=int, metavar="BYTES", help="Where the superblock is.  [default: found automatically]"
)
@click.option(
    "--fec-device", type=IMAGE, metavar="FILE", help="Also check this parity, or say whether it can repair the damage."
)
@click.option(
    "--fec-roots",
    type=ROOTS,
    help="Parity bytes in each codeword of 255 bytes.  [default: from the size of the parity]",
)
@FEC_OFFSET
@click.option("--jobs", type=click.IntRange(1), help="Number of threads.  [default: number of CPUs]")
@json_option
@names_image
def verify(
    *,
    image: Path | str,
    root_hash: str,
    partition: str | None,
    hash_device: Path | str | None,
    hash_offset: int | None,
    fec_device: Path | None,
    fec_roots: int | None,
    fec_offset: int | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Verify every block of IMAGE and of its hash tree.

    Bad blocks are listed, and the exit code is 4 if there are any. IMAGE is a file, a block device, or an export of
    another machine (nbd://HOST/EXPORT), which is read once.

    \b
    Example:
      erofs-edge verity verify system.img --root-hash @root.hash
    """
    from erofs_edge.verity import fec, repair, tree

    parity_needs_a_device(fec_device, fec_roots, fec_offset)
    expected, where = root_hash_of(root_hash), f"{image}: {partition}" if partition else str(image)
    wrong, repairable = 0, None
    with ExitStack() as stack:
        place = stack.enter_context(reached(image, partition))
        hashes = None if hash_device is None else stack.enter_context(reached(hash_device))
        if fec_device and not (isinstance(place, Path) and isinstance(hashes, Path | None)):
            raise UsageError("parity can be checked only if image and tree are files or devices of this machine")
        hash_offset = _hash_offset(place, hashes, hash_offset, fec_device, fec_offset, where)
        with Progress(f"verifying {where}") as progress:
            found = tree.verify(
                place, expected, hash_device=hashes, hash_offset=hash_offset, jobs=jobs, progress=progress
            )  # fmt: skip
        record = _found(found, expected) | {"files": (files := _files(place, found))}
        if fec_device and isinstance(place, Path) and isinstance(hashes, Path | None):
            places = fec.Places(
                place, fec_device, hash_device=hashes, hash_offset=hash_offset, fec_offset=fec_offset, roots=fec_roots
            )
            if found.ok:
                covered, fec_fd = stack.enter_context(fec.opened(places))[2:]
                with Progress(f"parity of {where}") as progress:
                    wrong = fec.wrong_parity(covered, fec_fd, jobs=jobs, progress=progress)
                record |= parity_described(covered.layout) | {"ok": not wrong, "wrong_parity_bytes": wrong}
            else:
                repairable = repair.repair(places, expected, dry_run=True, jobs=jobs)
                record |= parity_described(repairable.layout) | {"repairable": repairable.ok}
    if as_json:
        emit_json(record)
    elif found.ok and not wrong:
        click.echo(f"{where}: all {found.superblock.data_blocks} data blocks match root hash {expected.hex()}")
    if not found.ok:
        one_file = place if fec_device is None and hashes is None and isinstance(place, Path) else None
        raise VerificationError(_complaint(found, files), where=where, hint=_advice(found, repairable, one_file))
    if wrong:
        raise _wrong_parity(wrong, fec_device)


def _wrong_parity(count: int, device: Path | None) -> VerificationError:
    return VerificationError(
        f"{count} byte(s) of parity are wrong; the image itself is intact",
        where=str(device),
        hint="rebuild the parity with erofs-edge verity repair",
    )


@verity.command("repair")
@click.argument("image", type=IMAGE)
@click.option("--root-hash", required=True, metavar="HEX|@FILE", help="The root hash, or a file that holds it.")
@click.option("--from", "sources", type=click.Path(exists=True, path_type=Path), multiple=True,
              metavar="FILE|FOLDER", help="What may contain blocks of IMAGE, anywhere. May be repeated.")  # fmt: skip
@click.option("--fec-device", type=IMAGE, metavar="FILE", help="Where the parity is; may be IMAGE itself.")
@click.option(
    "--fec-roots",
    type=ROOTS,
    help="Parity bytes in each codeword of 255 bytes.  [default: from the size of the parity]",
)
@FEC_OFFSET
@click.option("--hash-device", type=IMAGE, metavar="FILE", help="Where the hash tree is.  [default: in IMAGE]")
@click.option(
    "--hash-offset", type=int, metavar="BYTES", help="Where the superblock is.  [default: found automatically]"
)
@click.option("--dry-run", is_flag=True, help="Show what could be repaired; change nothing.")
@click.option("--jobs", type=click.IntRange(1), help="Number of threads.  [default: number of CPUs]")
@json_option
@names_image
def repair_(
    *,
    image: Path,
    root_hash: str,
    sources: tuple[Path, ...],
    fec_device: Path | None,
    fec_roots: int | None,
    fec_offset: int | None,
    hash_device: Path | None,
    hash_offset: int | None,
    dry_run: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Repair damaged blocks of IMAGE and its hash tree in place.

    The correct content comes from other files (--from, with all files of a folder) or from parity (--fec-device). Only
    blocks that then match the root hash are written. If the image is intact but its parity is damaged, the parity is
    rebuilt. Exits with 4 if some blocks cannot be repaired.
    """
    from erofs_edge.cli.verity_from import borrow, files_of
    from erofs_edge.verity.fec import Places
    from erofs_edge.verity.repair import repair as correct

    expected = root_hash_of(root_hash)
    if (fec_device is None) == (not sources):
        raise UsageError(
            "repair from what? Give exactly one of --from FILE and --fec-device FILE",
            hint=f"images of builds hold their own parity: --fec-device {image}",
        )
    parity_needs_a_device(fec_device, fec_roots, fec_offset)
    if fec_device is None:
        files = files_of(sources, image)
        at = _hash_offset_of_any([image, *files], hash_device, hash_offset)
        borrow(image, expected, files, hash_device, at, dry_run=dry_run, jobs=jobs, as_json=as_json)
        return
    hash_offset = _hash_offset(image, hash_device, hash_offset, fec_device, fec_offset, str(image))
    places = Places(
        image, fec_device, hash_device=hash_device, hash_offset=hash_offset, fec_offset=fec_offset, roots=fec_roots
    )
    with Progress(f"verifying {image.name}") as progress:
        found = correct(places, expected, dry_run=dry_run, jobs=jobs, progress=progress)
    if as_json:
        emit_json({**parity_described(found.layout), "root_hash": expected.hex(), "dry_run": dry_run, **_counts(found)})
    else:
        click.echo(f"{image}: {_repaired(found, dry_run)}")
    if not found.ok:
        raise VerificationError(
            f"beyond repair: {_listed(found.lost_data, found.lost_hash, found.unproven)}",
            where=str(image),
            hint="write the image again from a good copy",
        )


def _counts(found: Repair) -> dict[str, object]:
    return {
        "ok": found.ok,
        "repaired_data_blocks": found.repaired_data,
        "repaired_hash_blocks": found.repaired_hash,
        "corrected_bytes": found.corrected,
        "lost_data_blocks": found.lost_data,
        "lost_hash_blocks": found.lost_hash,
        "unproven_data_blocks": found.unproven,
        "parity_bytes": found.parity,
    }


@verity.command()
@click.argument("image", metavar="IMAGE|URI", type=FAR)
@click.option("--partition", metavar="NAME", help="Read this partition of the disk IMAGE.")
@click.option(
    "--hash-offset", type=int, metavar="BYTES", help="Where the superblock is.  [default: found automatically]"
)
@json_option
@names_image
def dump(*, image: Path | str, partition: str | None, hash_offset: int | None, as_json: bool) -> None:
    """Show the verity superblock of IMAGE.

    IMAGE may also be a hash device. The sizes of data and hash tree are shown too.
    """
    from erofs_edge.verify.system import erofs_end
    from erofs_edge.verity import tree

    with reached(image, partition) as place:
        given = hash_offset is not None
        if hash_offset is None:
            found = tree.find_superblock(place)
            hash_offset = found if found is not None else erofs_end(place) or 0
        try:
            sb = tree.read_superblock(place, hash_offset)
        except FormatError as error:
            said = str(error) if given else f"no hash tree found: {error}"
            advice = (None if given else disk_advice(place)) or "--hash-offset BYTES, or name the file that holds it"
            raise FormatError(said, where=str(image), hint=advice) from None
    start, end = sb.start_block(hash_offset), sb.end(hash_offset)
    record = described(sb) | {
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
        table((title(key) + ":", str(value)) for key, value in record.items())


def _found(found: Verification, expected: bytes) -> dict[str, object]:
    return described(found.superblock) | {
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
    return blocks_text({"bad data": data, "bad hash": hashes, "unproven data": unproven})


def _files(image: Place, found: Verification) -> list[str]:
    """The files of an EROFS image that its bad blocks hit."""
    from erofs_edge.verify.system import files_of
    from erofs_edge.verity.source import opened

    if not found.bad_data:
        return []
    with opened(image) as source:
        return files_of(source, 0, found.superblock, found.bad_data)


def _advice(found: Verification, repairable: Repair | None, one_file: Path | None) -> str | None:
    """`one_file`: holds image, tree, and behind them perhaps parity that nobody has asked for."""
    if found.unproven.total == found.superblock.data_blocks and (repairable is None or not repairable.ok):
        return "the top of the tree does not match: check that this is the root hash of this image"
    if repairable is None:
        if one_file is None or one_file.stat().st_size <= found.superblock.end(found.hash_offset):
            return None
        return f"what follows the tree may be parity: add --fec-device {one_file} to see what it can repair"
    if repairable.ok:
        return "all of it can be repaired: erofs-edge verity repair"
    lost = _listed(repairable.lost_data, repairable.lost_hash, repairable.unproven)
    return f"erofs-edge verity repair would leave {lost}"


def _repaired(found: Repair, dry_run: bool) -> str:
    if text := blocks_text({"data": found.repaired_data, "hash": found.repaired_hash}):
        return f"{'can repair' if dry_run else 'repaired'} {text} ({found.corrected} bytes)"
    return f"rebuilt {found.parity} bytes of parity" if found.parity else "nothing repaired"


def _hash_offset_of_any(images: Sequence[Path], hash_device: Path | None, hash_offset: int | None) -> int:
    """The same, of the first of these in which it is found: a damaged image may not tell any more."""
    problem: UsageError | None = None
    for image in images:
        try:
            return _hash_offset(image, hash_device, hash_offset, None, None, str(image))
        except UsageError as error:
            problem = problem or error
    raise problem or UsageError("no image")


def _hash_offset(
    image: Place,
    hash_device: Place | None,
    hash_offset: int | None,
    fec_device: Path | None,
    fec_offset: int | None,
    where: str,
) -> int:
    """Where the superblock is: as given, at 0 of a hash device, found in the image."""
    from erofs_edge.verify.system import erofs_end
    from erofs_edge.verity.tree import find_superblock

    if hash_offset is not None:
        return hash_offset
    if hash_device is not None:
        return 0
    found = find_superblock(image)
    if found is None and fec_offset and fec_device and isinstance(image, Path) and os.path.samefile(image, fec_device):
        found = find_superblock(image, fec_offset)
    if found is None:
        found = erofs_end(image)  # where a padded slot has its tree, also one whose superblock is damaged
    if found is None:
        advice = disk_advice(image) or "--hash-offset BYTES or --hash-device FILE"
        raise UsageError("no hash tree found", where=where, hint=advice)
    return found
