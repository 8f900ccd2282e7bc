# SPDX-License-Identifier: Apache-2.0
"""Read the packed inode of an older image: which bytes belong to which file, and where it is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from erofs_edge.erofs.anchors import OldExtent
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.places import OldPacked
from erofs_edge.erofs.read import PIECE, Image

READ_MAX = 4  # times the size of the packed inode; overlapping parts are not read beyond that


def read_old_packed(image: Image, files: Mapping[bytes, DiskInode]) -> OldPacked:
    """Read the packed inode. It is decoded once, in order, and only hashes are kept. Raises ErofsFormatError."""
    packed = image.packed
    paths: dict[bytes, tuple[int, int]] = {}
    for path, inode in files.items():
        if (found := _fragment(image, inode)) is not None:
            paths[path] = found
    parts: dict[tuple[bytes, int], list[int]] = {}
    extents: list[OldExtent] = []
    waiting = sorted(set(paths.values()), key=lambda one: (one[0] + one[1], one[0]))[::-1]
    budget = READ_MAX * packed.size
    for extent in _extents(image, packed):
        digest = _hash(image, packed, extent.start, extent.length)
        raw = extent.kind in (Kind.RAW, Kind.ROTATED)
        extents.append(OldExtent(extent.start, extent.length, raw, extent.inline, digest))
        # what ends in here has most likely just been decoded
        while waiting and sum(waiting[-1]) <= extent.start + extent.length:
            at, length = waiting.pop()
            budget -= length
            if budget >= 0:
                parts.setdefault((_hash(image, packed, at, length), length), []).append(at)
    for offsets in parts.values():
        offsets.sort()
    return OldPacked(packed.size, tuple(extents) if packed.is_compressed else (), parts, paths)


def _fragment(image: Image, inode: DiskInode) -> tuple[int, int] | None:
    """Return (offset in the packed inode, length) of the end of a file, None if it has none there."""
    if not inode.size or not inode.is_compressed:
        return None
    zmap = image.zmap(inode)
    if zmap.fragment < 0:
        return None
    last = next(image.extents(inode, inode.size - 1), None)
    inside = last is not None and last.kind is Kind.FRAGMENT and last.address + last.length <= image.packed.size
    return (last.address, last.length) if last is not None and inside else None


def _extents(image: Image, packed: DiskInode) -> Iterator[Extent]:
    """Yield the extents of the packed inode; long ones, which only flat files have, in pieces."""
    for extent in image.extents(packed):
        if extent.kind is Kind.RAW and extent.length > PIECE:
            for at in range(0, extent.length, PIECE):
                yield extent._replace(start=extent.start + at, length=min(PIECE, extent.length - at))
        elif extent.kind is not Kind.HOLE:
            yield extent


def _hash(image: Image, packed: DiskInode, offset: int, length: int) -> bytes:
    state = hashlib.sha256()
    for at in range(offset, offset + length, PIECE):
        state.update(image.read(packed, at, min(PIECE, offset + length - at)))
    return state.digest()
