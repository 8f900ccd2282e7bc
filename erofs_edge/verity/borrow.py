# SPDX-License-Identifier: Apache-2.0
"""Repair an image in place using other files that contain its blocks: the same image, an older one, a whole disk.

Works down from the root hash: each wrong hash block is replaced by one that matches, so that the blocks below it can be
judged. A source block counts by its hash, not by its position: the one at the same offset is tried first, then any
other. Only blocks that match are ever written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.positions import READ, READ_WRITE, pread
from erofs_edge.verity import superblock
from erofs_edge.verity.blocks import (
    Progress,
    counter,
    file_size,
    hash_blocks,
    hashed_slices,
    read_exactly,
)
from erofs_edge.verity.check import Mended, Ranges, check_bounds
from erofs_edge.verity.superblock import Level, Superblock
from erofs_edge.writing import write_exactly


@dataclass(frozen=True, slots=True)
class Borrowed(Mended):
    """`superblock`: whether it was damaged and has been rewritten."""

    superblock: bool


def repair_from(
    image: Path,
    root_hash: bytes,
    sources: Sequence[Path],
    *,
    hash_offset: int,
    hash_device: Path | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Borrowed:
    """Replace all wrong blocks of an image and its tree for which a source has the right content.

    An interrupted repair leaves each block either as it was or correct. Raises FormatError if neither the image nor a
    source has a superblock at `hash_offset`, UsageError if the length of the root hash does not fit the algorithm.
    """
    flags = READ if dry_run else READ_WRITE
    with ExitStack() as stack:

        def opened(path: Path, flags: int) -> int:
            fd = os.open(path, flags)
            stack.callback(os.close, fd)
            return fd

        data_fd = opened(image, flags)
        hash_fd = opened(hash_device, flags) if hash_device else data_fd
        fds = [opened(path, READ) for path in sources]
        sb, damaged = _superblock(hash_fd, fds, hash_offset)
        if len(root_hash) != sb.digest_size:
            raise UsageError(f"the root hash has {len(root_hash)} bytes, but {sb.algorithm} has {sb.digest_size}")
        check_bounds(sb, hash_offset, file_size(data_fd), file_size(hash_fd), one_file=hash_device is None)
        work = _Borrowing(sb, data_fd, hash_fd, fds, jobs, dry_run=dry_run)
        found = work.run(hash_offset, root_hash, damaged, progress)
        if not dry_run:
            if damaged and found.ok:
                padded = sb.start_block(hash_offset) * sb.hash_block_size - hash_offset
                write_exactly(hash_fd, sb.pack().ljust(padded, b"\0"), hash_offset)
            os.fsync(data_fd)
            os.fsync(hash_fd)
    return found


class _Borrowing:
    """One repair: each level, corrected as far as possible, is used to judge the level below."""

    def __init__(
        self, sb: Superblock, data_fd: int, hash_fd: int, sources: list[int], jobs: int | None, *, dry_run: bool
    ) -> None:
        self.sb, self.data_fd, self.hash_fd, self.sources, self.jobs = sb, data_fd, hash_fd, sources, jobs
        self.dry_run = dry_run
        self.index: dict[int, dict[bytes, tuple[int, int]]] = {}

    def run(self, at: int, root: bytes, damaged: bool, progress: Progress | None) -> Borrowed:
        """Go through the tree level by level from the top, then through the data."""
        sb, size = self.sb, self.sb.hash_block_size
        found = Borrowed(Ranges(), Ranges(), Ranges(), Ranges(), Ranges(), damaged)
        above, known = root.ljust(sb.slot_size, b"\0"), bytearray(b"\1")  # digests; which of their blocks are right
        for level in reversed(sb.levels(at)):
            content = bytearray(read_exactly(self.hash_fd, level.count * size, level.start * size))
            right = bytearray(b"\1") * level.count
            for block, digest in self._wrong(self.hash_fd, size, level, above, known):
                offset = (level.start + block) * size
                new = None if digest is None else self._fetch(self.hash_fd, offset, size, digest)
                if new is not None:
                    found.repaired_hash.add(level.start + block)
                    content[block * size : (block + 1) * size] = new
                    continue
                right[block] = 0
                if digest is not None:
                    found.lost_hash.add(level.start + block)
            above, known = bytes(content), right
        size, data = sb.data_block_size, Level(0, sb.data_blocks)
        for block, digest in self._wrong(self.data_fd, size, data, above, known, progress):
            if digest is None:
                found.unproven.add(block)
            elif self._fetch(self.data_fd, block * size, size, digest) is None:
                found.lost_data.add(block)
            else:
                found.repaired_data.add(block)
        return found

    def _wrong(
        self, fd: int, size: int, level: Level, above: bytes, known: bytearray, progress: Progress | None = None
    ) -> Iterator[tuple[int, bytes | None]]:
        """Yield (block, its expected digest or None if unknown) for all blocks that are not proved right."""
        sb = self.sb
        slot, per = sb.slot_size, sb.per_block
        count = counter(progress, level.count * size)
        start, first = level.start * size, 0
        for digests in hashed_slices(sb, fd, start, start + level.count * size, size, jobs=self.jobs, count=count):
            blocks = len(digests) // slot
            parents = known[first // per : (first + blocks - 1) // per + 1]
            if all(parents) and digests == above[first * slot : first * slot + len(digests)]:
                first += blocks
                continue
            for index in range(blocks):
                block = first + index
                expected = above[block * slot : (block + 1) * slot]
                if not known[block // per]:
                    yield block, None
                elif digests[index * slot : (index + 1) * slot] != expected:
                    yield block, expected
            first += blocks

    def _fetch(self, fd: int, offset: int, size: int, right: bytes) -> bytes | None:
        """Find the block with this digest in a source and write it to its place."""
        for source in self.sources:
            data = read_exactly(source, size, offset)
            if len(data) == size and hash_blocks(data, size, self.sb) == right:
                break
        else:
            found = self._indexed(size).get(right)
            if found is None:
                return None
            data = read_exactly(found[0], size, found[1])
            if hash_blocks(data, size, self.sb) != right:
                return None  # it has changed in the meantime
        if not self.dry_run:
            write_exactly(fd, data, offset)
        return data

    def _indexed(self, size: int) -> dict[bytes, tuple[int, int]]:
        """Return digest → (source, byte offset) for all whole blocks of the sources. Built on first use."""
        if size not in self.index:
            index: dict[bytes, tuple[int, int]] = {}
            slot = self.sb.slot_size
            for source in self.sources:
                at, end = 0, file_size(source) // size * size
                for digests in hashed_slices(self.sb, source, 0, end, size, jobs=self.jobs):
                    for start in range(0, len(digests), slot):
                        index.setdefault(digests[start : start + slot], (source, at))
                        at += size
            self.index[size] = index
        return self.index[size]


def _superblock(hash_fd: int, sources: list[int], at: int) -> tuple[Superblock, bool]:
    """Return the superblock and whether it comes from a source because the image's own is damaged. (A wrong superblock
    cannot prove any block right.)"""
    problem: FormatError | None = None
    for number, fd in enumerate([hash_fd, *sources]):
        try:
            return superblock.parse(pread(fd, superblock.SIZE, at), at), number > 0
        except FormatError as error:
            problem = problem or error
    raise problem or FormatError("no superblock", where=f"offset {at:#x}")
