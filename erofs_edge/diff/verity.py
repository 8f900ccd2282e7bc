# SPDX-License-Identifier: Apache-2.0
"""Compare what follows the file system in two system images: hash tree and parity."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.diff.report import Change, Report
from erofs_edge.positions import pread
from erofs_edge.verity.blocks import hash_blocks
from erofs_edge.verity.check import find_superblock, read_superblock, superblock_behind
from erofs_edge.verity.superblock import Superblock

_SLICE = 4 << 20
_WHY = {"uuid": "derived from content", "salt": "derived from manifests and locks, of an image alone from its content"}


def compare_trees(old: Path, new: Path, end: tuple[int, int], report: Report) -> None:
    """Compare the bytes from `end` of each image on. Raises FormatError if a tree's superblock is damaged."""
    trees = [_tree(path, start) for path, start in zip((old, new), end, strict=True)]
    if trees[0] is None or trees[1] is None:
        if trees[0] != trees[1]:
            report.add(Change("verity", "", "removed" if trees[1] is None else "added"))
        elif _tail(old, end[0]) != _tail(new, end[1]):
            report.add(Change("bytes", "behind the file system", "content"))
        return
    (one, first, root), (other, second, new_root) = trees[0], trees[1]
    before = len(report.changes)
    for name in ("algorithm", "data_block_size", "hash_block_size", "data_blocks", "salt", "uuid"):
        report.field("verity", "verity superblock", name, getattr(one, name), getattr(other, name), _WHY.get(name, ""))
    report.field("verity", "verity superblock", "offset", first, second, "follows from the size of the data")
    report.field("verity", "hash tree", "root hash", root, new_root, "follows from the data")
    ends = one.end(first), other.end(second)
    sizes = [max(path.stat().st_size - at, 0) for path, at in zip((old, new), ends, strict=True)]
    report.field("verity", "parity", "bytes", sizes[0], sizes[1])
    if len(report.changes) > before:
        return
    for what, at, size in (("hash tree", first, ends[0] - first), ("parity", ends[0], sizes[0])):
        differs = _first_difference(old, new, at, size)
        if differs is not None:
            why = "damaged in one: salt and root hash are the same"
            report.add(Change("verity", what, "bytes", None, None, why, detail=[f"from {differs:#x} on"]))


def _tree(path: Path, end: int) -> tuple[Superblock, int, bytes] | None:
    """(superblock, its byte offset, digest of the topmost hash block: the root hash) of an image whose file system ends
    at byte `end`; None without a tree."""
    at = find_superblock(path)
    if at is None:
        at = superblock_behind(path, end)  # with parity after the tree
    if at is None:
        return None
    sb = read_superblock(path, at)
    levels = sb.levels(at)
    start, size = (levels[-1].start * sb.hash_block_size, sb.hash_block_size) if levels else (0, sb.data_block_size)
    with path.open("rb") as handle:
        block = pread(handle.fileno(), size, start)
    return sb, at, hash_blocks(block, size, sb)[: sb.digest_size]


def _tail(path: Path, start: int) -> tuple[int, bytes]:
    import hashlib

    state = hashlib.sha256()
    with path.open("rb") as handle:
        handle.seek(start)
        while piece := handle.read(_SLICE):
            state.update(piece)
        return max(handle.tell() - start, 0), state.digest()


def _first_difference(old: Path, new: Path, at: int, size: int) -> int | None:
    """Byte offset of the first 4096 bytes in which two equally long areas differ."""
    with old.open("rb") as one, new.open("rb") as other:
        for offset in range(at, at + size, _SLICE):
            length = min(_SLICE, at + size - offset)
            pieces = [pread(handle.fileno(), length, offset) for handle in (one, other)]
            if pieces[0] != pieces[1]:
                for step in range(0, length, 4096):
                    if pieces[0][step : step + 4096] != pieces[1][step : step + 4096]:
                        return offset + step
    return None
