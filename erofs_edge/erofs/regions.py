# SPDX-License-Identifier: Apache-2.0
"""What is where in an image file: every byte belongs to exactly one region of one kind."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.extents import Extent, Kind, chunk_table
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.names import fsdecode

KINDS = (
    "boot area", "superblock and tables", "inodes", "attributes", "indexes", "directories", "symlinks",
    "inline data", "plain data", "lz4 data", "lzma data", "deflate data", "zstd data", "fragments", "metabox",
    "padding", "hash tree", "behind the image",
)  # fmt: skip
"""in the order in which pictures and tables show them"""
_REGIONS_MAX = 4_000_000
_VERITY_MAGIC = b"verity\0\0"
_VERITY_BLOCK = 4096


class Region(NamedTuple):
    """Bytes [start, end) of the file. `label` is a path, or "" if no file owns them."""

    start: int
    end: int
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Map:
    """The regions of an image in order, without gaps. `size` is the file's, `image_size` the image's."""

    size: int
    image_size: int
    block_size: int
    regions: list[Region]

    def totals(self) -> dict[str, int]:
        """Return kind → bytes, in the order of KINDS, for kinds that occur."""
        sums = dict.fromkeys(KINDS, 0)
        for region in self.regions:
            sums[region.kind] += region.end - region.start
        return {kind: size for kind, size in sums.items() if size}


def map_image(image: Image) -> Map:
    """Walk the whole image. Bytes on extra devices are not in the map. Raises ErofsFormatError."""
    found: list[Region] = []
    for region in _all(image):
        if region.start < region.end <= image.backing.end:
            found.append(region)
            if len(found) > _REGIONS_MAX:
                raise ErofsFormatError(f"more than {_REGIONS_MAX} regions", where="offset 0x0")
    found.sort()
    info = image.superblock
    regions = list(_without_gaps(found, info.size))
    regions += _behind(image, info.size)
    return Map(image.backing.size, info.size, info.block_size, regions)


def _without_gaps(found: list[Region], size: int) -> Iterator[Region]:
    """Yield the regions in order, each byte once: shared bytes belong to the first owner, unowned ones are padding."""
    position = 0
    for region in found:
        if region.start > position:
            yield Region(position, region.start, "padding", "")
        if region.end > position:
            yield region._replace(start=max(position, region.start))
            position = region.end
    if position < size:
        yield Region(position, size, "padding", "")


def _behind(image: Image, size: int) -> list[Region]:
    backing = image.backing
    if backing.size == size:
        return []
    tree = -(-size // _VERITY_BLOCK) * _VERITY_BLOCK
    if backing.beyond(tree, len(_VERITY_MAGIC)) != _VERITY_MAGIC:
        return [Region(size, backing.size, "behind the image", "")]
    gap = [Region(size, tree, "padding", "")] if tree > size else []
    return [*gap, Region(tree, backing.size, "hash tree", "")]


def _all(image: Image) -> Iterator[Region]:
    info = image.superblock
    records = sum(2 + len(record) for record in info.records.values())
    yield Region(0, ondisk.SUPER_OFFSET, "boot area", "")
    yield _region(ondisk.SUPER_OFFSET, info.super_size + records, "superblock and tables")
    slots = len(info.devices) * ondisk.DEVICE_SLOT.size
    yield _region(info.raw.devt_slotoff * ondisk.DEVICE_SLOT.size, slots, "superblock and tables")
    yield _region(*image.prefix_table(), "superblock and tables")
    seen: set[int] = set()
    shared: set[tuple[int, int]] = set()
    for path, inode in image.walk():
        if inode.nid not in seen:
            seen.add(inode.nid)
            yield from _inode(image, inode, fsdecode(b"/" + path), shared)
    if info.raw.packed_nid and info.incompat(ondisk.INCOMPAT_FRAGMENTS):
        yield from _inode(image, image.packed, "(packed inode)", shared, "fragments")
    if info.metabox_nid:
        yield from _inode(image, image.metabox, "(metabox inode)", shared, "metabox")


def _region(start: int, size: int, kind: str, label: str = "") -> Region:
    return Region(start, start + size, kind, label)


def _inode(
    image: Image, inode: DiskInode, label: str, shared: set[tuple[int, int]], kind: str | None = None
) -> Iterator[Region]:
    """Yield the regions of one inode. `kind` overrides the kind of its data."""
    yield _region(inode.offset, inode.header_size, "inodes", label)
    yield _region(inode.offset + inode.header_size, inode.xattr_size, "attributes", label)
    for entry in image.xattr_area(inode).shared:
        if entry not in shared:
            shared.add(entry)
            yield _region(*entry, "attributes")
    if inode.size and inode.is_compressed:
        zmap = image.zmap(inode)
        start = -(-inode.body // 8) * 8
        yield _region(start, zmap.position + zmap.index_size - start, "indexes", label)
    elif inode.size and inode.layout == ondisk.LAYOUT_CHUNK_BASED:
        table, entry_size, count, _ = chunk_table(image.backing, image.superblock, inode)
        yield _region(table, entry_size * count, "indexes", label)
    if stat.S_ISDIR(inode.mode):
        kind = "directories"
    elif stat.S_ISLNK(inode.mode):
        kind = "symlinks"
    for extent in image.extents(inode):
        if extent.kind not in (Kind.HOLE, Kind.FRAGMENT):
            yield from _data(image, extent, kind, label)


def _data(image: Image, extent: Extent, kind: str | None, label: str) -> Iterator[Region]:
    """Yield the bytes of an extent without the zeros that pad its blocks."""
    start, end = extent.address, extent.address + extent.size
    if extent.kind is Kind.ENCODED:
        kind = kind or f"{ondisk.ALGORITHM_NAMES[extent.algorithm]} data"
        if not extent.inline:
            first = image.backing.read(start, min(extent.size, image.superblock.block_size), "pcluster")
            start += len(first) - len(first.lstrip(b"\0"))
    else:
        kind = kind or ("inline data" if extent.inline else "plain data")
        end = end if extent.kind is Kind.ROTATED else extent.address + extent.length
    yield Region(start, end, kind, label)
