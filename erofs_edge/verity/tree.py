# SPDX-License-Identifier: Apache-2.0
"""dm-verity hash trees: append one to an image, or write one to a separate file.

Memory use is a few slices, whatever the image's size: each level is written to its place and read back for the level
above. The superblock is written last, so that an incomplete tree never looks valid. Until then, a marker in its place
records the image's original size, so that the next append can undo one that was killed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.positions import READ, READ_WRITE, pread
from erofs_edge.uuids import uuid8
from erofs_edge.verity.area import area_of
from erofs_edge.verity.blocks import (
    SLICE,
    Count,
    Progress,
    counter,
    file_size,
    hash_blocks,
    hashed_slices,
    read_exactly,
)
from erofs_edge.verity.check import Verification, find_superblock, offsets_by_size, read_superblock, verify
from erofs_edge.verity.superblock import BLOCK_MAX, SIZE, Level, Superblock, VerityInfo, is_block_size
from erofs_edge.writing import room_for, write_exactly

__all__ = [
    "Superblock",
    "TreeOptions",
    "Verification",
    "VerityInfo",
    "append",
    "find_superblock",
    "format_tree",
    "read_superblock",
    "root_hash",
    "verify",
    "write_levels",
]


ENDS = 1 << 20  # bytes at each end of an image from which salt and UUID are derived
WHAT = "the verity tree"  # named in the error if there is no space left for it
UNFINISHED = b"unverity"  # followed by the image's size in bytes, u64


class TreeOptions(TypedDict, total=False):
    """Options for a tree.

    uuid, salt  16 bytes; at most 256 bytes; derived from the image's size and its first and last MiB if not given
    block_size  size of a data block in bytes, default 4096
    hash_block_size  size of a hash block in bytes, default as block_size
    algorithm   'sha256' (default) or 'sha512'
    """

    uuid: bytes | None
    salt: bytes | None
    block_size: int
    hash_block_size: int | None
    algorithm: str


def append(
    path: Path,
    *,
    hash_offset: int | None = None,
    digests: bytes | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[TreeOptions],
) -> VerityInfo:
    """Append a superblock and a hash tree to the image at `path`, in place.

    The image is first padded with zeros to whole data blocks; the padding is covered. `hash_offset` (bytes) may leave a
    gap after that. Any failure, including Ctrl-C, leaves the image as it was. The remains of an append that was killed
    are removed first, if that tree was to follow the data and had the same block size. `digests` are the slots of all
    data blocks, made with the given salt while the image was written (meanwhile.py).

    Raises UsageError if there is a tree already or an option is invalid, CapacityError if the disk is full, FormatError
    for an empty image.
    """
    if (found := find_superblock(path)) is not None:
        raise UsageError(
            "this image already has a hash tree",
            where=f"{path}: offset {found:#x}",
            hint=f"to remove it: truncate -s {found} {path}",
        )
    with _opened(path, READ_WRITE) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError("a hash tree can be appended to files only", where=str(path), hint="--hash-device FILE")
        size = _undo_unfinished(fd)
        sb, count = _describe(path, fd, size, options, progress)
        at = -(-sb.data_size // sb.hash_block_size) * sb.hash_block_size if hash_offset is None else hash_offset
        _check_offset(at)
        if at < sb.data_size:
            raise UsageError(f"hash offset {at} lies inside the {sb.data_size} bytes of data", where=str(path))
        if digests is not None and (options.get("salt") is None or len(digests) != sb.data_blocks * sb.slot_size):
            raise UsageError("these are not the digests of this image", where=str(path))
        try:
            with room_for(WHAT, str(path)):
                write_exactly(fd, (UNFINISHED + size.to_bytes(8, "little")).ljust(SIZE, b"\0"), at)
                os.ftruncate(fd, sb.end(at))
                root = _write_tree(sb, fd, fd, at, digests=digests, jobs=jobs, count=count)
        except BaseException:
            os.ftruncate(fd, size)
            raise
    return _info(sb, root, at, sb.end(at))


def format_tree(
    data: Path,
    hash_device: Path,
    *,
    hash_offset: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[TreeOptions],
) -> VerityInfo:
    """Write the superblock and hash tree for `data` to another file or device, at byte `hash_offset`.

    Everything before `hash_offset` is kept. At offset 0, a new file is created, which gets its name only once it is
    complete. Raises as `append` does, and UsageError if the data is not a whole number of blocks: its tail would be
    unprotected.
    """
    _check_offset(hash_offset)
    with _opened(data, READ) as data_fd:
        size = file_size(data_fd)
        sb, count = _describe(data, data_fd, size, options, progress)
        if size != sb.data_size:
            raise UsageError(
                f"{size} bytes are not a whole number of {sb.data_block_size}-byte blocks",
                where=str(data),
                hint="pad it, or append the tree to the image itself, which pads",
            )
        if hash_device.exists() and os.path.samefile(data, hash_device):
            raise UsageError("data and tree are one file: append the tree instead", where=str(data))
        with area_of(hash_device, hash_offset, WHAT) as hash_fd:
            if stat.S_ISREG(os.fstat(hash_fd).st_mode):
                os.ftruncate(hash_fd, max(sb.end(hash_offset), file_size(hash_fd)))
            root = _write_tree(sb, data_fd, hash_fd, hash_offset, jobs=jobs, count=count)
            end = file_size(hash_fd)
    return _info(sb, root, hash_offset, end)


def root_hash(sb: Superblock, read: Callable[[int, int], bytes]) -> bytes:
    """Return the root hash of data supplied by `read(offset, length)`, with the whole tree in memory."""
    level = bytearray()
    step = max(SLICE, sb.data_block_size)
    for offset in range(0, sb.data_size, step):
        level += hash_blocks(read(offset, min(step, sb.data_size - offset)), sb.data_block_size, sb)
    while len(level) > sb.slot_size:
        level += bytes(-len(level) % sb.hash_block_size)
        level = bytearray(hash_blocks(bytes(level), sb.hash_block_size, sb))
    return bytes(level[: sb.digest_size])


def _write_tree(
    sb: Superblock,
    data_fd: int,
    hash_fd: int,
    hash_offset: int,
    *,
    digests: bytes | None = None,
    jobs: int | None,
    count: Count | None,
) -> bytes:
    """Write all levels, then the superblock. Return the root hash."""
    root = write_levels(sb, data_fd, hash_fd, sb.levels(hash_offset), digests=digests, jobs=jobs, count=count)
    tree_start = sb.start_block(hash_offset) * sb.hash_block_size
    write_exactly(hash_fd, sb.pack().ljust(tree_start - hash_offset, b"\0"), hash_offset)
    return root


def write_levels(
    sb: Superblock,
    data_fd: int,
    hash_fd: int,
    levels: list[Level],
    *,
    digests: bytes | None = None,
    jobs: int | None = None,
    count: Count | None = None,
) -> bytes:
    """Write the levels of a tree, starting with the one over the data, and return the root hash. `digests`: the slots
    of all data blocks, if known."""
    fd, start, end, block_size = data_fd, 0, sb.data_size, sb.data_block_size
    for level in levels:
        first = position = level.start * sb.hash_block_size
        known = None if digests is None or level is not levels[0] else (digests,)
        for slots in known or hashed_slices(sb, fd, start, end, block_size, jobs=jobs, count=count):
            write_exactly(hash_fd, slots, position)
            position += len(slots)
        last = first + level.count * sb.hash_block_size
        write_exactly(hash_fd, bytes(last - position), position)
        fd, start, end, block_size, count = hash_fd, first, last, sb.hash_block_size, None
    top = next(hashed_slices(sb, fd, start, end, block_size, jobs=1, count=count))
    return top[: sb.digest_size]


def _undo_unfinished(fd: int) -> int:
    """Cut off what a killed append left behind, if anything, and return the image's size in bytes.

    The append was killed when the file ended either with the marker or at its final size.
    """
    size = os.fstat(fd).st_size
    for at in (size - SIZE, *offsets_by_size(size)):
        mark = pread(fd, 16, at) if at > 0 else b""
        before = int.from_bytes(mark[8:], "little")
        if mark[:8] == UNFINISHED and at - BLOCK_MAX < before <= at:
            os.ftruncate(fd, before)
            return before
    return size


def _describe(
    path: Path, fd: int, size: int, options: TreeOptions, progress: Progress | None
) -> tuple[Superblock, Count | None]:
    """Return the superblock for a file of `size` bytes, and the function that counts the bytes of the pass over it.

    A salt prevents digests of one image from being useful against another; for that it only has to differ between
    images. The root hash depends on every byte anyway. The ends of an EROFS image written by us contain its UUID, which
    is derived from all its content.
    """
    block_size = options.get("block_size", 4096)
    if not is_block_size(block_size):
        raise UsageError(f"block size {block_size} is not a power of two from 512 to 512K")
    if not size:
        raise FormatError("an empty file: there is nothing to hash", where=str(path))
    uuid, salt = options.get("uuid"), options.get("salt")
    count = counter(progress, size)
    ends = read_exactly(fd, min(ENDS, size), 0) + read_exactly(fd, min(ENDS, size), max(size - ENDS, 0))
    seed = hashlib.sha256(size.to_bytes(8, "little") + ends).digest()
    if salt is None:
        salt = hashlib.sha256(b"erofs-edge verity salt\0" + seed).digest()
    if uuid is None:
        uuid = uuid8(hashlib.sha256(b"erofs-edge verity uuid\0" + seed).digest())
    try:
        hash_block_size = options.get("hash_block_size") or block_size
        algorithm = options.get("algorithm", "sha256")
        return Superblock(uuid, salt, -(-size // block_size), algorithm, block_size, hash_block_size), count
    except FormatError as error:
        raise UsageError(error.message, hint=error.hint) from None


def _check_offset(hash_offset: int) -> None:
    if hash_offset % 512 or hash_offset < 0:
        raise UsageError(f"hash offset {hash_offset} is not a multiple of 512")


def _info(sb: Superblock, root: bytes, hash_offset: int, size: int) -> VerityInfo:
    return VerityInfo(
        root, sb.salt, sb.uuid, sb.data_block_size, sb.data_blocks, hash_offset, sb.start_block(hash_offset), size,
        sb.hash_block_size, sb.algorithm,
    )  # fmt: skip


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)
