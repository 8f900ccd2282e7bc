# SPDX-License-Identifier: Apache-2.0
"""The image that a new one replaces: where each path has its inode, its blocks and its data in it.

Only its layout is read. Whatever keeps its place is compared byte by byte with what is to be stored, so no old content
can get into the new image.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.attributes import Attribute
from erofs_edge.erofs.extents import Kind, chunk_table
from erofs_edge.erofs.inode import NULL_BLOCK, DiskInode
from erofs_edge.erofs.old_packed import read_old_packed
from erofs_edge.erofs.places import OldPacked
from erofs_edge.erofs.plan import PACKED_PATH
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError, SourceError, UsageError
from erofs_edge.positions import pread

_NOT_KEPT = {ondisk.INCOMPAT_48BIT: "48-bit addresses", ondisk.INCOMPAT_METABOX: "inodes in a metabox"}


@dataclass(frozen=True, slots=True)
class OldInode:
    """nid        counted from byte 0 of the image
    slots      slots it occupies, including everything that follows it
    number     its i_ino
    block      for a directory: the first block of its entries, -1 if it has none
    blocks     number of these blocks
    """

    nid: int
    slots: int
    number: int
    block: int
    blocks: int


class Baseline:
    """An open baseline; use `open_baseline`."""

    def __init__(self, image: Image, file: BinaryIO) -> None:
        self._file = file
        self._image = image
        self._bits = image.superblock.raw.blkszbits
        self.path = image.path
        self.inodes: dict[bytes, OldInode] = {}
        self.shared: dict[Attribute, int] = {}
        self._files: dict[bytes, DiskInode] = {}
        known: dict[int, OldInode] = {}
        for path, inode in image.walk():
            old = known.get(inode.nid)
            if old is None:
                old = known[inode.nid] = self._old(inode)
            self.inodes[b"/" + path] = old
            if not inode.is_dir:
                self._files[b"/" + path] = inode
        self.raw = image.superblock.raw
        self.blocks = image.superblock.blocks
        self.packed: OldPacked | None = None
        if self.raw.packed_nid and image.superblock.incompat(ondisk.INCOMPAT_FRAGMENTS):
            self.packed = read_old_packed(image, self._files)
            self.inodes[PACKED_PATH] = self._old(image.packed)
            self._files[PACKED_PATH] = image.packed

    @property
    def epoch(self) -> tuple[int, int]:
        """Seconds and nanoseconds of compact inodes."""
        return self._image.superblock.epoch, self.raw.fixed_nsec

    def inode_blocks(self) -> set[int]:
        """Return all blocks that contain a part of an inode."""
        shift = self._bits - ondisk.SLOT_BITS
        return {
            block
            for old in set(self.inodes.values())
            for block in range(old.nid >> shift, (old.nid + old.slots - 1 >> shift) + 1)
        }

    def data_block(self, path: bytes, offset: int) -> int:
        """Return the block at which the bytes from `offset` of the file at a path start; -1 if there is none."""
        inode = self._files.get(path)
        if inode is None:
            return -1
        with _naming(self._image.path):
            extent = next(self._image.extents(inode, offset), None)
        if extent is None or extent.inline or extent.kind in (Kind.HOLE, Kind.FRAGMENT):
            return -1
        address = extent.address + (offset - extent.start if extent.kind is Kind.RAW else 0)
        aligned = not address & (1 << self._bits) - 1 and (offset == extent.start or extent.kind is Kind.RAW)
        return address >> self._bits if aligned else -1

    def holds(self, first: int, blocks: int) -> bool:
        return first >= 0 and first + blocks <= self.blocks

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the image, all of which must exist. Not from the map, whose pages would count as our
        memory."""
        try:
            data = pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise SourceError(f"cannot read the baseline: {error.strerror}", where=str(self.path)) from error
        if len(data) != length:
            raise SourceError("the baseline became shorter while it was being read", where=str(self.path))
        return data

    def differing(self, offset: int, data: bytes) -> int:
        """Count the blocks in these bytes of a new image that differ here."""
        step = 1 << self._bits
        here = max(0, min(len(data), (self.blocks << self._bits) - offset))
        old = self.read(offset, here) if here else b""
        if old == data:
            return 0
        return sum(old[at : at + step] != data[at : at + step] for at in range(0, len(data), step))

    def starts(self, chunk_size: int | None) -> dict[bytes, list[int]]:
        """Return sha256 of the first block of each run of data → the blocks at which such runs start, in order.

        `chunk_size` is that of chunk-based files, each of whose chunks is a run.
        """
        found: set[int] = set()
        with _naming(self._image.path):
            for inode in self._files.values():
                found |= self._runs(inode, chunk_size)
        keys = defaultdict(list)
        for block in sorted(found):
            if self.holds(block, 1):
                keys[hashlib.sha256(self.read(block << self._bits, 1 << self._bits)).digest()].append(block)
        return keys

    def _runs(self, inode: DiskInode, chunk_size: int | None) -> set[int]:
        if inode.layout == ondisk.LAYOUT_CHUNK_BASED:
            raw = [extent for extent in self._image.extents(inode) if extent.kind is Kind.RAW]
            step = chunk_size or max(1, inode.size)
            return {(e.address + at) >> self._bits for e in raw for at in range(0, e.length, step)}
        # only full indexes can refer to pclusters that are not contiguous; those of the packed inode are kept
        # individually
        single = inode.nid == self.raw.packed_nid
        whole = single or inode.layout == ondisk.LAYOUT_COMPRESSED_FULL
        found, end = set(), -1
        for extent in self._image.extents(inode):
            if not extent.inline and extent.kind not in (Kind.HOLE, Kind.FRAGMENT):
                if single or extent.address != end:
                    found.add(extent.address >> self._bits)
                end = extent.address + extent.size
            if not whole:
                break
        return found

    def _old(self, inode: DiskInode) -> OldInode:
        end = inode.body
        if inode.size and inode.is_compressed:
            zmap = self._image.zmap(inode)
            end = zmap.position + zmap.index_size + zmap.idata_size
        elif inode.size and inode.layout == ondisk.LAYOUT_CHUNK_BASED:
            table, entry, count, _ = chunk_table(self._image.backing, self._image.superblock, inode)
            end = table + entry * count
        elif inode.layout == ondisk.LAYOUT_FLAT_INLINE:
            end += inode.size & (1 << self._bits) - 1
        block, blocks = -1, 0
        if inode.is_dir and not inode.is_compressed and inode.block != NULL_BLOCK:
            block, blocks = inode.block, inode.size >> self._bits
            if inode.layout == ondisk.LAYOUT_FLAT_PLAIN:
                blocks = -(-inode.size >> self._bits)
        if inode.xattr_size:
            self._note_shared(inode)
        slots = -(-(end - inode.offset) // ondisk.SLOT_SIZE)
        return OldInode(inode.offset >> ondisk.SLOT_BITS, slots, inode.ino, block, blocks)

    def _note_shared(self, inode: DiskInode) -> None:
        area = self._image.xattr_area(inode)
        names = list(area.items.items())
        # the shared ones come last, in the order of their offsets in the area
        for attribute, (at, _) in zip(names[len(names) - len(area.shared) :], area.shared, strict=False):
            self.shared[attribute] = at


@contextmanager
def open_baseline(path: Path, block_size: int) -> Iterator[Baseline]:
    """Open a baseline. Raises ErofsFormatError if it is not a valid image, UsageError if it is not a usable
    baseline."""
    with _naming(path):
        image = Image(path)
    with image, path.open("rb") as file:
        with _naming(path):
            _check(image, path, block_size)
            baseline = Baseline(image, file)
        yield baseline


def _check(image: Image, path: Path, block_size: int) -> None:
    info = image.superblock
    found = [name for bit, name in _NOT_KEPT.items() if info.incompat(bit)]
    if info.devices:
        found.append("extra devices")
    if found:
        raise UsageError(
            f"the baseline has {found[0]}, which cannot keep their places",
            where=str(path),
            hint="build an image without them first, and without a baseline",
        )
    if info.block_size != block_size:
        raise UsageError(
            f"the baseline has blocks of {info.block_size} bytes, the new image is to have {block_size}",
            where=str(path),
            hint="build with the options that the baseline was built with",
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to errors."""
    try:
        yield
    except ErofsFormatError as error:
        raise ErofsFormatError(
            f"the baseline {path} cannot be used: {error.message}", where=error.where, hint=error.hint
        ) from error
