# SPDX-License-Identifier: Apache-2.0
"""Read an EROFS image: inodes, directories, contents, attributes, or all of it as a FileTree.

All data in the image is untrusted: each read is bounded, and a violation of the format raises ErofsFormatError with the
byte offset. Reading is safe from several threads.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import METABOX, Backing, Window, broken
from erofs_edge.erofs.decode import ExtentCache, decode_lent
from erofs_edge.erofs.device_table import attach
from erofs_edge.erofs.dirents import Dirent, parse_block
from erofs_edge.erofs.extents import Extent, Kind, chunk_extents, flat_extents
from erofs_edge.erofs.image_file import ImageFile
from erofs_edge.erofs.inode import DiskInode, inode_offset, read_inode
from erofs_edge.erofs.mapheader import ZMap, read_zmap
from erofs_edge.erofs.remembered import RememberedExtents
from erofs_edge.erofs.superblock import SuperInfo, read_superblock
from erofs_edge.erofs.walk import WalkLimits
from erofs_edge.erofs.xattrs import XattrArea, prefix_table_size, read_prefixes, read_xattrs
from erofs_edge.erofs.zmap import compressed_extents
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.names import fsdecode, fsencode
from erofs_edge.tree import FileTree, Inode

SYMLINK_MAX = 4095
SYMLINKS_FOLLOWED_MAX = 40
CACHE_BYTES = 32 << 20
PIECE = 1 << 20  # bytes yielded at a time when streaming
_JOINED = 64 << 10  # bytes of a file up to which blocks and inline tail are worth joining
_FLAT = (ondisk.LAYOUT_FLAT_PLAIN, ondisk.LAYOUT_FLAT_INLINE)
_ZEROS = bytes(PIECE)
_NAMESPACES = tuple(ondisk.XATTR_PREFIXES.values())
_METABOX_PIECE = 64 << 10
_METABOX_PIECES_KEPT = 64


class Image:
    """An open image. Use it as a context manager.

    superblock  the parsed superblock
    root_nid    number of the root inode
    missing_devices  numbers (from 1) of the devices whose data cannot be read
    metabox     the inode that holds metadata, if the image has one
    """

    def __init__(
        self, path: Path | str, *, devices: Sequence[Path | str] = (), offset: int = 0, verify_checksum: bool = True
    ) -> None:
        """Open the image at byte `offset` of a file, a multiple of mmap.ALLOCATIONGRANULARITY. `devices` are the
        image's extra devices, in order; data on devices that are not given cannot be read.

        Raises ErofsEdgeError if a file cannot be read, ErofsFormatError if it is not an image that this reader
        supports, UsageError for the wrong number of devices.
        """
        self.path = Path(path)
        self.backing = Backing(self.path, offset)
        self._devices: list[Backing] = []
        try:
            self.superblock: SuperInfo = read_superblock(self.backing, verify_checksum=verify_checksum)
            self._cache = ExtentCache(self.backing, self.superblock, CACHE_BYTES)
            self._remembered = RememberedExtents()
            self._zmap: ZMap | None = None  # the last one
            paths = [Path(device) for device in devices]
            slots, bits = self.superblock.devices, self.superblock.raw.blkszbits
            self._devices, self.missing_devices = attach(self.backing, slots, paths, bits)
            if self.superblock.metabox_nid:
                self._open_metabox()
            self.root_nid = self.superblock.root_nid
            if not self.inode(self.root_nid).is_dir:
                raise broken("the root inode is not a directory", inode_offset(self.superblock, self.root_nid))
        except BaseException:
            self.close()
            raise

    def _open_metabox(self) -> None:
        """Make the content of the metabox inode readable: in pieces, of which a bounded number are cached."""
        inode = self.metabox = self.inode(self.superblock.metabox_nid)
        if not stat.S_ISREG(inode.mode):
            raise broken(f"the metabox inode has mode {inode.mode:#o}", inode.offset)

        @lru_cache(_METABOX_PIECES_KEPT)
        def piece(number: int) -> bytes:
            return self.read(inode, number * _METABOX_PIECE, _METABOX_PIECE)

        def read(offset: int, length: int) -> bytes:
            first, start = divmod(offset, _METABOX_PIECE)
            if start + length <= _METABOX_PIECE:
                return piece(first)[start : start + length]
            return self.read(inode, offset, length)

        self.backing.attach(Window(METABOX, METABOX + inode.size, read, METABOX))

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for backing in (self.backing, *self._devices):
            backing.close()

    def inode(self, nid: int) -> DiskInode:
        """Return the inode with a given number. Raises ErofsFormatError if no inode can be there."""
        return read_inode(self.backing, self.superblock, nid)

    # names

    def directory_blocks(self, inode: DiskInode) -> Iterator[bytes]:
        """Yield each block of a directory; the last one ends at the directory's size."""
        if not inode.is_dir:
            raise ErofsEdgeError("not a directory", where=f"inode {inode.nid}")
        block = self.superblock.block_size
        for start in range(0, inode.size, PIECE):
            piece = self.read(inode, start, PIECE)
            for at in range(0, len(piece), block):
                yield piece[at : at + block]

    def dirents(self, inode: DiskInode) -> Iterator[Dirent]:
        """Yield all entries of a directory, including "." and "..", in byte order of their names."""
        previous = b""
        for data in self.directory_blocks(inode):
            entries = parse_block(data, inode.offset)
            if entries[0].name <= previous:
                raise broken(f"directory entries out of order: {entries[0].name!r} after {previous!r}", inode.offset)
            previous = entries[-1].name
            yield from entries

    def listdir(self, inode: DiskInode) -> list[Dirent]:
        """Return the entries of a directory without "." and ".."."""
        return [entry for entry in self.dirents(inode) if entry.name not in (b".", b"..")]

    def lookup(self, path: bytes | str, *, follow: bool = True) -> DiskInode:
        """Return the inode at a path. Symlinks on the way (with `follow`, at the end, too) are resolved in the image.

        Raises ErofsEdgeError if there is none.
        """
        shown = fsdecode(path)
        todo = [part for part in fsencode(path).split(b"/") if part not in (b"", b".")][::-1]
        trail = [self.inode(self.root_nid)]
        budget = SYMLINKS_FOLLOWED_MAX
        while todo:
            name = todo.pop()
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            if not trail[-1].is_dir:
                raise ErofsEdgeError("not a directory inside the image", where=shown)
            entry = next((entry for entry in self.listdir(trail[-1]) if entry.name == name), None)
            if entry is None:
                raise ErofsEdgeError("no such file in the image", where=shown)
            child = self.inode(entry.nid)
            if not stat.S_ISLNK(child.mode) or not (todo or follow):
                trail.append(child)
                continue
            budget -= 1
            if not budget:
                raise ErofsEdgeError("too many symlinks", where=shown)
            target = self.readlink(child)
            if target.startswith(b"/"):
                trail = trail[:1]
            todo += [part for part in target.split(b"/")[::-1] if part not in (b"", b".")]
        return trail[-1]

    def walk(self, top: DiskInode | None = None) -> Iterator[tuple[bytes, DiskInode]]:
        """Yield (path, inode) for everything below a directory, parents first, names in byte order; `top` is b"".

        Raises ErofsFormatError if a directory is reached twice, if an entry's type differs from its inode's, or if the
        directories together are larger than an image of this size can hold.
        """
        top = top if top is not None else self.inode(self.root_nid)
        limits = WalkLimits(top, self.backing.end)
        stack: list[tuple[bytes, DiskInode, int]] = [(b"", top, 0)]
        while stack:
            path, inode, depth = stack.pop()
            yield path, inode
            if not inode.is_dir:
                continue
            limits.enter(inode, depth)
            prefix = path + b"/" if path else b""
            children = []
            for entry in self.listdir(inode):
                child = self.child(entry)
                if child.is_dir:
                    limits.find(child, inode)
                children.append((prefix + entry.name, child, depth + 1))
            stack += reversed(children)

    def directories(self, top: DiskInode) -> Iterator[tuple[bytes, DiskInode, list[Dirent], bool]]:
        """Yield (path, inode, entries of anything but directories, whether there are only these) for a directory and
        each one below it, parents first; `top` is b"". The inodes of those entries are not read. Raises
        ErofsFormatError as `walk` does.
        """
        limits = WalkLimits(top, self.backing.end)
        stack: list[tuple[bytes, DiskInode, int]] = [(b"", top, 0)]
        while stack:
            path, inode, depth = stack.pop()
            limits.enter(inode, depth)
            prefix = path + b"/" if path else b""
            below, others = [], []
            for entry in self.listdir(inode):
                if entry.file_type != ondisk.FILE_TYPES[stat.S_IFDIR]:
                    others.append(entry)
                    continue
                child = self.child(entry)
                limits.find(child, inode)
                below.append((prefix + entry.name, child, depth + 1))
            yield path, inode, others, not below
            stack += reversed(below)

    def child(self, entry: Dirent) -> DiskInode:
        """Return the inode of a directory entry. Raises ErofsFormatError if their types differ."""
        inode = self.inode(entry.nid)
        if ondisk.FILE_TYPES[stat.S_IFMT(inode.mode)] != entry.file_type:
            raise broken(
                f"directory entry {entry.name!r} has type {entry.file_type}, its inode has mode {inode.mode:#o}",
                inode.offset,
            )
        return inode

    # contents

    def zmap(self, inode: DiskInode) -> ZMap:
        """Return the map header of a compressed, non-empty inode."""
        known = self._zmap
        if known is not None and known.inode is inode:
            return known
        zmap = read_zmap(self.backing, self.superblock, inode)
        if zmap.fragment >= 0:
            if inode.nid == self.superblock.raw.packed_nid:
                raise broken("the packed inode refers to itself", inode.offset)
            if inode.nid == self.superblock.metabox_nid:  # the packed inode may be in the metabox
                raise broken("the metabox inode uses fragments", inode.offset)
        self._zmap = zmap
        return zmap

    def extents(self, inode: DiskInode, offset: int = 0, *, strict: bool = False) -> Iterator[Extent]:
        """Yield the extents of the content in order, from the one with byte `offset` on; none for an empty file.

        `strict` also checks what only read-ahead uses. Raises ErofsFormatError if an extent lies outside the image.
        """
        if offset >= inode.size:
            return iter(())
        if inode.is_compressed:
            return compressed_extents(self.backing, self.superblock, self.zmap(inode), offset, strict=strict)
        if inode.layout == ondisk.LAYOUT_CHUNK_BASED:
            return chunk_extents(self.backing, self.superblock, inode, offset)
        flat = flat_extents(self.backing, self.superblock, inode)
        return iter([extent for extent in flat if extent.start + extent.length > offset])

    def read(self, inode: DiskInode, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of a file, symlink or directory, clipped to its size.

        Decoded pclusters are kept in a bounded cache. Raises ErofsFormatError.
        """
        end = min(offset + length, inode.size)
        if offset >= end:
            return b""
        pieces = []
        find = partial(self.extents, inode)
        wanted = self._remembered.between(inode.nid, offset, end, find) if inode.is_compressed else find(offset)
        for extent in wanted:
            if extent.start >= end:
                break
            first = max(offset - extent.start, 0)
            pieces.append(self._part(extent, first, min(end - extent.start, extent.length)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stream(self, inode: DiskInode) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the content in order, decoded once, in pieces of at most EXTENT_MAX, without holes.

        Raises ErofsFormatError.
        """
        return ((offset, bytes(data)) for offset, data in self.stream_lent(inode))

    def stream_lent(self, inode: DiskInode) -> Iterator[tuple[int, bytes | memoryview]]:
        """Like `stream`, but each piece may be overwritten when the thread decodes the next one, and must not be used
        after `close`."""
        if 0 < inode.size <= _JOINED and inode.layout in _FLAT:
            data = self._flat(inode)
            if data is not None:
                yield 0, data
                return
        for extent in self.extents(inode):
            kind = extent.kind
            if kind is Kind.HOLE:
                continue
            if kind is Kind.RAW and extent.length <= PIECE:
                yield extent.start, self.backing.lend(extent.address, extent.length, "file data")
                continue
            if kind is Kind.ENCODED or kind is Kind.ROTATED:
                yield extent.start, decode_lent(self.backing, self.superblock, extent)
                continue
            for first in range(0, extent.length, PIECE):
                yield extent.start + first, self._part(extent, first, min(first + PIECE, extent.length))

    def _flat(self, inode: DiskInode) -> bytes | memoryview | None:
        """Return the content of a short flat file, None if it has a hole."""
        first, *tail = flat_extents(self.backing, self.superblock, inode)
        if first.kind is Kind.HOLE:
            return None
        data = self.backing.lend(first.address, first.length, "file data")
        return bytes(data) + self.backing.read(tail[0].address, tail[0].length, "file data") if tail else data

    def _part(self, extent: Extent, first: int, end: int) -> bytes:
        """Return bytes [first, end) of an extent."""
        if extent.kind is Kind.RAW:
            return self.backing.read(extent.address + first, end - first, "file data")
        if extent.kind is Kind.HOLE:
            return _ZEROS[: end - first] if end - first <= PIECE else bytes(end - first)
        if extent.kind is Kind.FRAGMENT:
            if extent.address + extent.length > self.packed.size:
                raise broken(
                    f"fragment of {extent.length} bytes at {extent.address} lies outside the packed inode",
                    self.packed.offset,
                )
            return self.read(self.packed, extent.address + first, end - first)
        data = self._cache.decode(extent)
        return data if first == 0 and end == extent.length else data[first:end]

    @cached_property
    def packed(self) -> DiskInode:
        """The inode that holds fragments. Raises ErofsFormatError if there is none."""
        nid = self.superblock.raw.packed_nid
        if not nid or not self.superblock.incompat(ondisk.INCOMPAT_FRAGMENTS):
            raise broken("the image uses fragments and has no packed inode", ondisk.SUPER_OFFSET + 96)
        inode = self.inode(nid)
        if not stat.S_ISREG(inode.mode):
            raise broken(f"the packed inode has mode {inode.mode:#o}", inode.offset)
        return inode

    def open(self, path: bytes | str) -> io.RawIOBase:
        """Open a regular file as a seekable, read-only binary file object. Symlinks are followed inside the image.

        Wrap it in io.BufferedReader for small reads. It is usable as long as the image is open.
        """
        inode = self.lookup(path)
        if not stat.S_ISREG(inode.mode):
            raise ErofsEdgeError("not a regular file", where=fsdecode(path))
        return ImageFile(ImageContent(self, inode))

    def readlink(self, inode: DiskInode) -> bytes:
        """Return the target of a symlink. Raises ErofsFormatError if it is empty, too long or contains a NUL byte."""
        if not 0 < inode.size <= SYMLINK_MAX:
            raise broken(f"inode {inode.nid}: symlink target of {inode.size} bytes", inode.offset)
        target = self.read(inode, 0, inode.size)
        if b"\0" in target:
            raise broken(f"inode {inode.nid}: symlink target with a NUL byte", inode.offset)
        return target

    # attributes

    def xattr_area(self, inode: DiskInode) -> XattrArea:
        """Return the extended attributes of an inode together with how they are stored. Raises ErofsFormatError."""
        return read_xattrs(self.backing, self.superblock, inode, lambda: self.xattr_prefixes)

    def xattrs(self, inode: DiskInode) -> dict[bytes, bytes]:
        """Return name → value for names in known namespaces; the kernel hides all others. Raises ErofsFormatError."""
        if not inode.xattr_size:
            return {}
        items = self.xattr_area(inode).items
        return {name: value for name, value in items.items() if name.startswith(_NAMESPACES)}

    def fingerprint(self, inode: DiskInode) -> bytes | None:
        """Return the stored fingerprint of a file's content, used for page sharing. Raises ErofsFormatError."""
        raw = self.superblock.raw
        if not raw.feature_compat & ondisk.COMPAT_ISHARE_XATTRS or not inode.xattr_size:
            return None
        if raw.ishare_xattr_prefix_id >= len(self.xattr_prefixes):
            raise broken(f"fingerprints by long prefix {raw.ishare_xattr_prefix_id}, which is missing", inode.offset)
        return self.xattr_area(inode).items.get(self.xattr_prefixes[raw.ishare_xattr_prefix_id])

    @cached_property
    def xattr_prefixes(self) -> list[bytes]:
        """The image's long attribute prefixes, in order. Raises ErofsFormatError."""
        raw = self.superblock.raw
        if not self.superblock.incompat(ondisk.INCOMPAT_XATTR_PREFIXES):
            return []
        plain = raw.feature_compat & ondisk.COMPAT_PLAIN_XATTR_PFX
        if not plain and self.superblock.metabox_nid:
            return read_prefixes(self.superblock, lambda at, length, _: self.read(self.metabox, at, length))
        if plain or not raw.packed_nid:
            return read_prefixes(self.superblock, self.backing.read)
        return read_prefixes(self.superblock, lambda at, length, _: self.read(self.packed, at, length))

    def prefix_table(self) -> tuple[int, int]:
        """Return (offset, size in bytes) of the table of long prefixes if it lies in the image itself, else (0, 0).

        Raises ErofsFormatError.
        """
        raw = self.superblock.raw
        elsewhere = raw.packed_nid or self.superblock.metabox_nid
        if not self.xattr_prefixes or (elsewhere and not raw.feature_compat & ondisk.COMPAT_PLAIN_XATTR_PFX):
            return 0, 0
        return 4 * raw.xattr_prefix_start, prefix_table_size(self.xattr_prefixes)

    # the whole image

    def tree(self) -> FileTree:
        """Return everything as a FileTree. Hard links share one object; contents are read on demand.

        The contents need this image to stay open. Raises ErofsFormatError.
        """
        known: dict[int, Inode] = {}
        by_path: dict[bytes, Inode] = {}
        root: Inode | None = None
        for path, disk in self.walk():
            node = known.get(disk.nid)
            if node is None:
                node = known[disk.nid] = self._node(disk)
            if disk.is_dir:
                by_path[path] = node
            if root is None:
                root = node
                continue
            parent, _, name = path.rpartition(b"/")
            by_path[parent].children[name] = node
        return FileTree(root)

    def _node(self, disk: DiskInode) -> Inode:
        node = Inode(disk.mode, disk.uid, disk.gid, disk.mtime_ns, disk.rdev, xattrs=self.xattrs(disk))
        if stat.S_ISREG(disk.mode):
            node.content = ImageContent(self, disk) if disk.size else None
        elif stat.S_ISLNK(disk.mode):
            node.target = self.readlink(disk)
        return node


@dataclass(frozen=True, slots=True)
class ImageContent:
    """Content of a FileTree inode, stored in an open image."""

    image: Image
    inode: DiskInode

    @property
    def size(self) -> int:
        return self.inode.size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length), clipped to the size. Raises ErofsFormatError."""
        return self.image.read(self.inode, offset, length)
