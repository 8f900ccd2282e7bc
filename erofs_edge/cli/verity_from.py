# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verity repair --from`: replace damaged blocks with those of other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from erofs_edge.cli.output import Progress, emit_json
from erofs_edge.cli.verity_options import blocks_text
from erofs_edge.errors import UsageError, VerificationError

FILES_MAX = 500  # open at the same time
BLOCK_MIN = 512  # bytes: anything smaller has no block


def files_of(sources: Sequence[Path], image: Path) -> list[Path]:
    """Return the files that `--from` names, those of folders sorted by name, without the image itself.

    Raises UsageError if there are none, or too many.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_fifo() or source.is_char_device():
            raise UsageError("neither a file nor a block device", where=str(source))
        if not source.is_dir():
            found.append(source)
            continue
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.samefile(image) and path.stat().st_size >= BLOCK_MIN:
                found.append(path)
    if not found:
        raise UsageError("no files to take blocks from", where=str(sources[0]))
    if len(found) > FILES_MAX:
        raise UsageError(
            f"{len(found)} files: at most {FILES_MAX} can be used", where=str(sources[0]), hint="name fewer"
        )
    return found


def borrow(
    image: Path,
    root_hash: bytes,
    sources: Sequence[Path],
    hash_device: Path | None,
    hash_offset: int,
    *,
    dry_run: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Repair, report the result, and raise VerificationError if some blocks are still bad."""
    from erofs_edge.verity.borrow import repair_from

    with Progress(f"verifying {image.name}") as progress:
        found = repair_from(
            image, root_hash, sources, hash_offset=hash_offset, hash_device=hash_device, dry_run=dry_run, jobs=jobs,
            progress=progress,
        )  # fmt: skip
    if as_json:
        emit_json({
            "root_hash": root_hash.hex(),
            "ok": found.ok,
            "dry_run": dry_run,
            "repaired_data_blocks": found.repaired_data,
            "repaired_hash_blocks": found.repaired_hash,
            "lost_data_blocks": found.lost_data,
            "lost_hash_blocks": found.lost_hash,
            "unproven_data_blocks": found.unproven,
            "superblock": found.superblock,
        })  # fmt: skip
    else:
        parts = [blocks_text({"data": found.repaired_data, "hash": found.repaired_hash})]
        parts += ["the superblock"] * (found.superblock and found.ok)
        text = "; ".join(filter(None, parts))
        verb = "can repair" if dry_run else "repaired"
        click.echo(f"{image}: {verb} {text}" if text else f"{image}: nothing repaired")
    if not found.ok:
        lost = {"data": found.lost_data, "hash": found.lost_hash, "unproven data": found.unproven}
        raise VerificationError(
            f"no source has {blocks_text(lost)}",
            where=str(image),
            hint="add another --from",
        )
