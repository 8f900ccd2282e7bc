# SPDX-License-Identifier: Apache-2.0
"""Check a system image against its root hash, block by block, and the file system in it; find the files of a bad
block.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.erofs.ondisk import SUPER_MAGIC, SUPER_OFFSET, SUPERBLOCK
from erofs_edge.erofs.ondisk import Superblock as ErofsSuperblock
from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.verify.checks import Verdict
from erofs_edge.verity.blocks import Source, file_size, read_exactly
from erofs_edge.verity.check import BAD, Ranges, Walk, find_superblock, superblock_behind
from erofs_edge.verity.source import Place, opened
from erofs_edge.verity.superblock import Level, Superblock
from erofs_edge.writing import scratch_folder

FILES_MAX = 20
COPY = 4 << 20  # bytes


def find_tree(place: Place) -> int | None:
    """Byte offset of the superblock of a hash tree in an image, or None: the tree ends the file, or follows the end of
    the EROFS image."""
    if (found := find_superblock(place)) is not None:
        return found
    end = erofs_end(place)
    return None if end is None else superblock_behind(place, end)


def erofs_end(place: Place) -> int | None:
    """The byte offset at which an EROFS at the start of a file ends, if there is one and the file is longer."""
    with opened(place) as source:
        size, raw = file_size(source), read_exactly(source, SUPERBLOCK.size, SUPER_OFFSET)
    if len(raw) < SUPERBLOCK.size:
        return None
    erofs = ErofsSuperblock(*SUPERBLOCK.unpack(raw))
    if erofs.magic != SUPER_MAGIC or erofs.blkszbits > 16:
        return None
    end = erofs.blocks_lo << erofs.blkszbits
    return end if end < size else None


def check_tree(
    fd: Source,
    base: int,
    sb: Superblock,
    levels: list[Level],
    root_hash: bytes,
    *,
    jobs: int | None = None,
    hash_base: int | None = None,
) -> None:
    """Check data and tree, whose block 0 is byte `base` of a file, against a root hash. `hash_base`: base of the tree,
    if different.

    Raises VerificationError naming blocks and files, FormatError if the file is too short.
    """
    bad, bad_hash, unproven = Ranges(), Ranges(), Ranges()
    for level, block, verdict in Walk(sb, fd, fd, jobs, None, base, hash_base).findings(levels, root_hash):
        if level is not None:
            if verdict == BAD:
                bad_hash.add(level.start + block)
        else:
            (bad if verdict == BAD else unproven).add(block)
    found = {"bad data": bad, "bad hash": bad_hash, "unproven data": unproven}
    told = "; ".join(f"{blocks.total} {kind} block(s): {blocks}" for kind, blocks in found.items() if blocks)
    if not told:
        return
    files = files_of(fd, base, sb, bad) if bad else []
    hint = f"files hit: {', '.join(files)}" if files else None
    if unproven.total == sb.data_blocks:
        hint = "the top of the tree does not match: another root hash, salt or image"
    raise VerificationError(f"does not match root hash {root_hash.hex()}: {told}", hint=hint)


def check_file_system(
    fd: Source, base: int, size: int, verdict: Verdict, what: str, *, jobs: int | None = None
) -> None:
    """Check the EROFS image in bytes [base, base + size) of a file, as `fs check` does."""
    from erofs_edge.erofs.check import check as check_erofs

    with verdict.check(what, "EROFS's rules (fs check)") as row, extracted(fd, base, size) as path:
        report = check_erofs(path, jobs=jobs)
        if not report.ok:
            first = report.errors[0]
            raise FormatError(f"{len(report.errors)} error(s), the first: {first.message}", where=first.where)
        row.against += f": {report.inodes} inodes"


@contextmanager
def extracted(fd: Source, base: int, size: int) -> Iterator[Path]:
    """A part of a file as a file of its own: the file itself if it starts with that part."""
    whole = Path(f"/proc/self/fd/{fd}")
    if isinstance(fd, int) and base == 0 and whole.exists():
        yield whole
        return
    with scratch_folder("verify") as folder:
        path = folder / "image"
        with path.open("wb") as target:
            for offset in range(0, size, COPY):
                target.write(read_exactly(fd, min(COPY, size - offset), base + offset))
        yield path


def files_of(fd: Source, base: int, sb: Superblock, blocks: Ranges) -> list[str]:
    """What the blocks belong to: paths, or 'superblock and tables' and so on; at most FILES_MAX, then '…'.

    [] if the file system's own structures are too damaged to tell.
    """
    from erofs_edge.erofs.read import Image
    from erofs_edge.erofs.regions import map_image

    try:
        with extracted(fd, base, sb.data_size) as path, Image(path, verify_checksum=False) as image:
            regions = map_image(image).regions
    except (ErofsEdgeError, OSError):
        return []
    starts = [region.start for region in regions]
    names: dict[str, None] = {}
    for first, count in blocks.ranges:
        start, end = first * sb.data_block_size, (first + count) * sb.data_block_size
        for region in regions[max(bisect_right(starts, start) - 1, 0) :]:
            if region.start >= end:
                break
            if region.end > start:
                names[region.label or f"({region.kind})"] = None
            if len(names) > FILES_MAX:
                return [*list(names)[:FILES_MAX], "…"]
    return list(names)
