# SPDX-License-Identifier: Apache-2.0
"""Find the blocks of an image that do not match its root hash.

Checks go from the top down, as in the kernel: a wrong hash block proves nothing about the blocks below it, so those
data blocks are 'unproven' rather than bad. Everything else is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.verity import superblock
from erofs_edge.verity.blocks import (
    SLICE,
    Count,
    Progress,
    Source,
    counter,
    file_size,
    hash_blocks,
    hashed_slices,
    read_exactly,
)
from erofs_edge.verity.source import Place, copied, opened
from erofs_edge.verity.superblock import Level, Superblock, VerityInfo

RANGES_MAX = 10_000
TREE_MAX = 4 << 30
"""limit in bytes for a tree that is not in a file (of an image of half a TiB): its size is only the other side's
claim"""
GOOD, BAD, UNPROVEN, SUSPECT = range(4)


@dataclass(slots=True)
class Ranges:
    """Block numbers as (first, count) ranges. `total` is exact; at most RANGES_MAX ranges are kept."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    total: int = 0

    def add(self, first: int, count: int = 1) -> None:
        """Add blocks; they must come after all those added before."""
        self.total += count
        if self.ranges and sum(self.ranges[-1]) == first:
            self.ranges[-1] = (self.ranges[-1][0], self.ranges[-1][1] + count)
        elif len(self.ranges) < RANGES_MAX:
            self.ranges.append((first, count))

    def __bool__(self) -> bool:
        return self.total > 0

    def __str__(self) -> str:
        """Format as '7, 12-15, …', with at most eight ranges."""
        shown = [str(first) if count == 1 else f"{first}-{first + count - 1}" for first, count in self.ranges[:8]]
        return ", ".join(shown + ["…"] * (len(self.ranges) > 8))


@dataclass(frozen=True, slots=True)
class Mended:
    """What was repaired, or could be, and what is lost. Numbers are data blocks, or blocks of the hash device.
    `unproven` data blocks are below a lost hash block: they may be right."""

    repaired_data: Ranges
    repaired_hash: Ranges
    lost_data: Ranges
    lost_hash: Ranges
    unproven: Ranges

    @property
    def ok(self) -> bool:
        """Whether every block now matches the root hash."""
        return not (self.lost_data or self.lost_hash or self.unproven)


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification. `bad_data` and `unproven` number data blocks, `bad_hash` numbers hash blocks from
    byte 0 of the hash device. `bad_superblock` can only be set if the expected superblock is known."""

    superblock: Superblock
    hash_offset: int
    bad_data: Ranges
    bad_hash: Ranges
    unproven: Ranges
    bad_superblock: bool

    @property
    def ok(self) -> bool:
        return not (self.bad_data or self.bad_hash or self.unproven or self.bad_superblock)


def verify(
    path: Place,
    expected: VerityInfo | bytes,
    *,
    hash_device: Place | None = None,
    hash_offset: int | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check each block of the data and of the tree against a root hash.

    With a VerityInfo, nothing on the disk is trusted, not even the superblock. With a bare root hash, the superblock is
    read at `hash_offset` (default: 0 on a separate device; in the image itself, where `find_superblock` finds it). A
    source that is not a file is read once, a few slices at a time; its tree is copied to a temporary file.

    Raises FormatError if the superblock is malformed or describes more than the files contain, UsageError if the length
    of the root hash does not fit the algorithm.
    """
    with opened(path) as data_fd, opened(hash_device or path) as hash_fd:
        if isinstance(expected, VerityInfo):
            at, sb, root = expected.hash_offset, expected.superblock, expected.root_hash
            padded = sb.pack().ljust(sb.start_block(at) * sb.hash_block_size - at, b"\0")
            bad_superblock = read_exactly(hash_fd, len(padded), at) != padded
        else:
            if hash_offset is None:
                hash_offset = 0 if hash_device else find_superblock(path) or 0
            at, root, bad_superblock = hash_offset, expected, False
            sb = superblock.parse(read_exactly(hash_fd, superblock.SIZE, at), at)
        if len(root) != sb.digest_size:
            raise UsageError(f"the root hash has {len(root)} bytes, but {sb.algorithm} has {sb.digest_size}")
        check_bounds(sb, at, file_size(data_fd), file_size(hash_fd), one_file=hash_device is None)
        bad_data, bad_hash, unproven = Ranges(), Ranges(), Ranges()
        walk = Walk(sb, data_fd, hash_fd, jobs, counter(progress, sb.data_size))
        for level, block, verdict in walk.findings(sb.levels(at), root):
            if level is None:
                (bad_data if verdict == BAD else unproven).add(block)
            elif verdict == BAD:
                bad_hash.add(level.start + block)
    return Verification(sb, at, bad_data, bad_hash, unproven, bad_superblock)


def find_superblock(path: Place, size: int | None = None) -> int | None:
    """Return the byte offset of a superblock whose tree ends exactly with the file, or at byte `size`; or None.

    Finds trees that have equal block sizes and follow their data immediately. The size of such a tree follows from the
    number of data blocks, so its position follows from the file's size: a few dozen reads for any size.
    """
    with opened(path) as source:
        size = file_size(source) if size is None else size
        for at in offsets_by_size(size):
            if read_exactly(source, len(superblock.MAGIC), at) != superblock.MAGIC:
                continue
            sb = superblock.parse(read_exactly(source, superblock.SIZE, at), at)
            if sb.data_size <= at and sb.end(at) == size:
                return at
    return None


def superblock_behind(path: Place, end: int) -> int | None:
    """Return `end` if there is a superblock at that byte, after whatever else the file contains; or None. Anything
    after its tree is ignored: parity, or the rest of a partition."""
    with opened(path) as source:
        found = read_exactly(source, len(superblock.MAGIC), end) == superblock.MAGIC
    return end if found else None


def offsets_by_size(size: int) -> Iterator[int]:
    """Yield where the superblock of a file of `size` bytes can be if data and tree, of one block size, fill it
    exactly."""
    for bits in range(superblock.BLOCK_MIN.bit_length() - 1, superblock.BLOCK_MAX.bit_length()):
        for algorithm in superblock.DIGEST_SIZES:
            at = _offset_by_size(size, 1 << bits, algorithm)
            if at is not None:
                yield at


def read_superblock(path: Place, hash_offset: int) -> Superblock:
    """Read the superblock at a byte offset of a file or device. Raises FormatError with the offset."""
    with opened(path) as source:
        return superblock.parse(read_exactly(source, superblock.SIZE, hash_offset), hash_offset)


def _offset_by_size(size: int, block_size: int, algorithm: str) -> int | None:
    """Return where the superblock must be if data and tree of one block size fill `size` bytes exactly."""
    if size % block_size or size < 2 * block_size:
        return None
    low, high = 1, size // block_size
    while low < high:
        middle = (low + high) // 2
        sb = Superblock(bytes(16), b"", middle, algorithm, block_size, block_size)
        if sb.end(sb.data_size) < size:
            low = middle + 1
        else:
            high = middle
    sb = Superblock(bytes(16), b"", low, algorithm, block_size, block_size)
    return sb.data_size if sb.end(sb.data_size) == size else None


def check_bounds(sb: Superblock, at: int, data_size: int, hash_size: int, *, one_file: bool) -> None:
    """Raises FormatError if a superblock at byte `at` describes more than the files contain."""
    if sb.data_size > data_size:
        raise FormatError(
            f"the superblock covers {sb.data_size} bytes of data, there are {data_size}", where=f"offset {at + 72:#x}"
        )
    if one_file and at < sb.data_size:
        raise FormatError("the superblock lies inside the data that it covers", where=f"offset {at:#x}")
    if sb.end(at) > hash_size:
        raise FormatError(f"the hash tree ends at byte {sb.end(at)}, the file at {hash_size}", where=f"offset {at:#x}")


class Walk:
    """One verification: the tree from the top level down, then the data. `base` is the byte of both files where block 0
    is, such as the start of a partition on a disk; `hash_base` is that of the hash blocks, if it differs."""

    def __init__(
        self,
        sb: Superblock,
        data_fd: Source,
        hash_fd: Source,
        jobs: int | None,
        count: Count | None,
        base: int = 0,
        hash_base: int | None = None,
    ) -> None:
        self.sb, self.data_fd, self.hash_fd, self.jobs, self.count, self.base = sb, data_fd, hash_fd, jobs, count, base
        self.hash_base = base if hash_base is None else hash_base

    def findings(self, levels: list[Level], root: bytes) -> Iterator[tuple[Level | None, int, int]]:
        """Yield (level, number in it, verdict) for each block that is not GOOD. For data, the level is None.

        Below a hash block that is not GOOD, a block that matches it is UNPROVEN and one that does not is SUSPECT. If
        the tree is not in a file and its top block is BAD, nothing more is read: all data is UNPROVEN. Raises
        FormatError if such a tree is larger than TREE_MAX bytes.
        """
        if isinstance(self.hash_fd, int) or not levels:
            yield from self._findings(levels, root)
            return
        source, top, size = self.hash_fd, levels[-1], self.sb.hash_block_size
        first, end = (self.hash_base + block * size for block in (top.start, levels[0].start + levels[0].count))
        if end - first > TREE_MAX:
            raise FormatError(f"a hash tree of {end - first} bytes, at most {TREE_MAX} are read from elsewhere")
        if hash_blocks(read_exactly(source, size, first), size, self.sb)[: self.sb.digest_size] != root:
            yield top, 0, BAD
            yield from ((None, block, UNPROVEN) for block in range(self.sb.data_blocks))
            return
        with copied(source, first, end) as fd:
            # the topmost level comes first, so it begins at byte 0 of the copy
            self.hash_fd, self.hash_base = fd, -top.start * size
            yield from self._findings(levels, root)

    def _findings(self, levels: list[Level], root: bytes) -> Iterator[tuple[Level | None, int, int]]:
        parent: Level | None = None
        state = bytearray(1)  # verdict on each of the parent's blocks; the root hash itself is GOOD
        size = self.sb.hash_block_size
        for level in reversed(levels):
            below = bytearray(level.count)
            start = self.hash_base + level.start * size
            slices = hashed_slices(self.sb, self.hash_fd, start, start + level.count * size, size, jobs=self.jobs)
            for block, verdict in self._judge(slices, parent, state, root, size):
                below[block] = verdict
                yield level, block, verdict
            parent, state = level, below
        size = self.sb.data_block_size
        slices = hashed_slices(
            self.sb, self.data_fd, self.base, self.base + self.sb.data_size, size, jobs=self.jobs, count=self.count
        )  # fmt: skip
        for block, verdict in self._judge(slices, parent, state, root, size):
            yield None, block, verdict

    def _judge(
        self, slices: Iterator[bytes], parent: Level | None, state: bytearray, root: bytes, block_size: int
    ) -> Iterator[tuple[int, int]]:
        """Yield (block, verdict) for the blocks of one level that are not GOOD, in order."""
        slot, per_block = self.sb.slot_size, self.sb.per_block
        doubtful = any(state)
        for number, digests in enumerate(slices):
            first = number * (SLICE // block_size)
            expected = root.ljust(slot, b"\0")
            if parent is not None:
                expected = read_exactly(
                    self.hash_fd, len(digests), self.hash_base + parent.start * self.sb.hash_block_size + first * slot
                )
            if digests == expected and not doubtful:
                continue
            for index in range(len(digests) // slot):
                block = first + index
                fits = digests[index * slot : (index + 1) * slot] == expected[index * slot : (index + 1) * slot]
                if doubtful and state[block // per_block] != GOOD:
                    yield block, UNPROVEN if fits else SUSPECT
                elif not fits:
                    yield block, BAD
