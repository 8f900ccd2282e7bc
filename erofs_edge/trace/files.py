# SPDX-License-Identifier: Apache-2.0
"""Map blocks of an image to parts of files and back; identify the image."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.profile import escape
from erofs_edge.erofs.read import Image
from erofs_edge.errors import FormatError
from erofs_edge.trace.record import FileUse, Trace, make_trace
from erofs_edge.verity import superblock
from erofs_edge.verity.blocks import hash_blocks


class _Part(NamedTuple):
    """Bytes [start, end) of the image contain what `use` says."""

    start: int
    end: int
    use: FileUse


def image_root_hash(path: Path) -> str:
    """The root hash (hex) of the hash tree after an image. Raises FormatError if there is none."""
    with Image(path) as image:
        step = image.superblock.block_size
        at = -(-image.superblock.size // step) * step
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        sb = superblock.parse(os.pread(fd, superblock.SIZE, at), at)
        levels = sb.levels(at)
        # the single block at the top; with a single data block, that is the data
        place, size = (levels[-1].start * sb.hash_block_size, sb.hash_block_size) if levels else (0, sb.data_block_size)
        top = os.pread(fd, size, place)
    if len(top) < size:
        raise FormatError("the hash tree is cut off", where=str(path))
    return hash_blocks(top, size, sb)[: sb.digest_size].hex()


def trace_of(
    path: Path, touches: Sequence[tuple[int, int, int]], *, block_size: int, requests: int, bytes_read: int
) -> Trace:
    """The trace of the image at `path`, see `make_trace`, with the names of what was read.

    Raises FormatError for a file that is not an EROFS image with a hash tree.
    """
    root_hash = image_root_hash(path)
    with Image(path) as image:
        files = files_of(image, ((first, count) for _, first, count in touches), block_size)
    return make_trace(
        touches,
        root_hash=root_hash,
        image_bytes=path.stat().st_size,
        block_size=block_size,
        requests=requests,
        bytes_read=bytes_read,
        files=files,
    )


def files_of(image: Image, reads: Iterable[tuple[int, int]], block_size: int) -> tuple[FileUse, ...]:
    """The directories, symlinks and files in the runs of blocks (first, count), each once, in their order.

    A file whose data is beside its inode is not listed, because reading any neighbour touches it.
    """
    parts = sorted(_parts(image))
    starts = [part.start for part in parts]
    # parts of an image only overlap where files share data: the longest determines how far to look back
    longest = max((part.end - part.start for part in parts), default=0)
    found: dict[FileUse, None] = {}
    for first, count in reads:
        start, end = first * block_size, (first + count) * block_size
        for part in parts[bisect_left(starts, start - longest) : bisect_left(starts, end)]:
            if part.end > start:
                found.setdefault(part.use)
    return tuple(_joined(found))


def _joined(uses: Iterable[FileUse]) -> Iterator[FileUse]:
    """Join consecutive parts of the same file."""
    current: FileUse | None = None
    for use in uses:
        if current and use.length and use.path == current.path and current.start + current.length == use.start:
            current = current._replace(length=current.length + use.length)
            continue
        if current:
            yield current
        current = use
    if current:
        yield current


def _parts(image: Image) -> Iterator[_Part]:
    seen: set[int] = set()
    for path, inode in image.walk():
        if inode.nid in seen:
            continue
        seen.add(inode.nid)
        yield from _of_inode(image, inode, escape(b"/" + path))


def _of_inode(image: Image, inode: DiskInode, path: str) -> Iterator[_Part]:
    for extent in image.extents(inode):
        if extent.inline or extent.kind in (Kind.HOLE, Kind.FRAGMENT):
            continue
        use = FileUse(path, extent.start, extent.length) if stat.S_ISREG(inode.mode) else FileUse(path, 0, 0)
        yield _Part(extent.address, extent.address + extent.size, use)
