# SPDX-License-Identifier: Apache-2.0
"""Compare two EROFS images: superblocks, every inode, every content, and where the data is."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from erofs_edge.diff.blocks import Blocks
from erofs_edge.diff.content import EXPLAINED_MAX, explain
from erofs_edge.diff.moved import comparable, runs, shift_of
from erofs_edge.diff.packages import Installed, installed
from erofs_edge.diff.report import Change, PackageChange, Report, shown
from erofs_edge.erofs.dump import superblock_fields
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.regions import map_image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.names import fsdecode

PATHS_SHOWN = 20
WINDOW = 4 << 20
"""bytes of a content decoded and compared at once"""
_FORM = itemgetter(*(Extent._fields.index(name) for name in Extent._fields if name not in ("address", "inline")))
"""what must be equal in two extents besides the bytes themselves, wherever they are"""
_SAID = itemgetter(*(DiskInode._fields.index(name) for name in ("mode", "uid", "gid", "mtime_ns", "nlink")))
_DEVICES = stat.S_IFCHR, stat.S_IFBLK
_DECODED = (Kind.FRAGMENT, Kind.ROTATED)  # only their decoded contents can be compared
_FOLLOWS = {
    "checksum": "follows from the fields",
    "size": "follows from what the image holds",
    "blocks": "follows from what the image holds",
    "inodes": "follows from what the image holds",
    "uuid": "derived from content and options",
    "epoch": "timestamp",
    "fixed_nsec": "timestamp",
    "root_nid": "placement",
    "packed_nid": "placement",
    "meta_blkaddr": "placement",
    "xattr_blkaddr": "placement",
}


@dataclass(slots=True)
class Side:
    """One of the two images, read once: path → inode, and the extents of an inode on demand."""

    image: Image
    entries: dict[bytes, DiskInode]
    installed: Installed
    first_names: dict[int, bytes] = field(default_factory=dict)
    _extents: dict[int, list[Extent]] = field(default_factory=dict)

    def extents(self, inode: DiskInode) -> list[Extent]:
        """All extents of an inode. Raises ErofsFormatError."""
        found = self._extents.get(inode.nid)
        if found is None:
            found = self._extents[inode.nid] = list(self.image.extents(inode))
        return found

    def first_name(self, path: bytes, inode: DiskInode) -> bytes:
        """The first path of the same inode: if these are equal, so are the hard links."""
        return self.first_names.get(inode.nid, path)


@dataclass(slots=True)
class Tally:
    """Files whose content is equal but whose bytes in the image are elsewhere (`moved`) or different (`recoded`);
    blocks are those of the new image that differ in place because of them."""

    moved: list[bytes] = field(default_factory=list)
    moved_blocks: int = 0
    recoded: list[bytes] = field(default_factory=list)
    recoded_blocks: int = 0


def compare_images(old: Path, new: Path, report: Report) -> None:
    """Add the differences of two EROFS images. Raises ErofsFormatError if one is malformed."""
    with Image(old, verify_checksum=False) as one, Image(new, verify_checksum=False) as other:
        sides = _side(one), _side(other)
        blocks = Blocks(old, new, one.superblock.size, other.superblock.size, other.superblock.block_size)
        comparison = Comparison(sides[0], sides[1], blocks, report)
        before, after = superblock_fields(one), superblock_fields(other)
        for name, value in before.items():
            report.field("superblock", "superblock", name, value, after.get(name), _FOLLOWS.get(name, ""))
        comparison.run()


def _side(image: Image) -> Side:
    entries = dict(image.walk())
    side = Side(image, entries, installed(image, entries))
    for path, inode in entries.items():
        if inode.nlink > 1 and not inode.is_dir:
            side.first_names.setdefault(inode.nid, path)
    return side


class Comparison:
    """One walk over two images. Damaged contents are reported as changes; damaged metadata ends it."""

    def __init__(self, old: Side, new: Side, blocks: Blocks, report: Report) -> None:
        self.old, self.new, self.blocks, self.report = old, new, blocks, report
        self.tally = Tally()
        self._before = len(report.changes)
        self._comparable = comparable(old.image, new.image)
        self._equal: dict[tuple[int, int], bool] = {}
        self._files: dict[str, set[bytes]] = {}
        self._blocks: dict[str, int] = {}

    def run(self) -> None:
        """Compare everything, then summarize it in sentences."""
        one, other = self.old.entries, self.new.entries
        for path in sorted(one.keys() | other.keys()):
            before, after = one.get(path), other.get(path)
            if before is None or after is None:
                self._one_sided(path, before, after)
            else:
                self._both(path, before, after)
        self._placement()
        self._packages()
        self._sentences()

    def _owner(self, path: bytes) -> str:
        return self.new.installed.owner(path) or self.old.installed.owner(path)

    def _add(self, path: bytes, inode: DiskInode | None, change: Change) -> None:
        change.where, change.package = "/" + fsdecode(path), self._owner(path)
        self._files.setdefault(change.package, set()).add(path)
        if inode is not None and change.what in ("content", "added"):
            change.blocks = self._differing(inode)
            self._blocks[change.package] = self._blocks.get(change.package, 0) + change.blocks
        self.report.add(change)

    def _one_sided(self, path: bytes, before: DiskInode | None, after: DiskInode | None) -> None:
        inode = after or before
        assert inode is not None  # noqa: S101  the union of both
        text = f"{stat.filemode(inode.mode)} {inode.uid}:{inode.gid} {inode.size} bytes"
        what = "removed" if after is None else "added"
        self._add(path, after, Change("file", "", what, text if before else None, text if after else None))

    def _both(self, path: bytes, before: DiskInode, after: DiskInode) -> None:
        kind = stat.S_IFMT(before.mode)
        if kind != stat.S_IFMT(after.mode):
            kinds = [stat.filemode(inode.mode)[0] for inode in (before, after)]
            self._add(path, after, Change("inode", "", "type", kinds[0], kinds[1]))
            return
        linked = before.nlink > 1 and kind != stat.S_IFDIR
        if linked or _SAID(before) != _SAID(after) or (kind in _DEVICES and before.rdev != after.rdev):
            self._fields(path, before, after)
        if before.xattr_size or after.xattr_size:
            self._xattrs(path, before, after)
        if kind == stat.S_IFLNK:
            targets = [fsdecode(side.image.readlink(inode)) for side, inode in ((self.old, before), (self.new, after))]
            if targets[0] != targets[1]:
                self._add(path, None, Change("inode", "", "target", targets[0], targets[1]))
        elif kind == stat.S_IFREG:
            self._content(path, before, after)

    def _fields(self, path: bytes, before: DiskInode, after: DiskInode) -> None:
        fields: list[tuple[str, object, object, str]] = [
            ("mode", f"{stat.S_IMODE(before.mode):04o}", f"{stat.S_IMODE(after.mode):04o}", ""),
            ("owner", f"{before.uid}:{before.gid}", f"{after.uid}:{after.gid}", ""),
            ("mtime", _time(before), _time(after), "timestamp"),
            ("device", before.rdev, after.rdev, ""),
        ]
        if not before.is_dir:
            fields.append(("links", before.nlink, after.nlink, "hard links"))
            if 1 < before.nlink == after.nlink:
                names = self.old.first_name(path, before), self.new.first_name(path, after)
                fields.append(("link of", fsdecode(names[0]), fsdecode(names[1]), "hard links"))
        for name, one, other, why in fields:
            if one != other:
                self._add(path, None, Change("inode", "", name, str(one), str(other), why))

    def _xattrs(self, path: bytes, before: DiskInode, after: DiskInode) -> None:
        one, other = self.old.image.xattrs(before), self.new.image.xattrs(after)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                what = f"xattr {fsdecode(name)}"
                self._add(path, None, Change("inode", "", what, shown(one.get(name)), shown(other.get(name))))

    def _content(self, path: bytes, before: DiskInode, after: DiskInode) -> None:
        pair = before.nid, after.nid
        change = Change("content", "", "content", f"{before.size} bytes", f"{after.size} bytes")
        try:
            known = self._equal.get(pair)
            if known is None:
                known = self._equal[pair] = before.size == after.size and self._same(path, before, after)
            if known:
                return
            if max(before.size, after.size) <= EXPLAINED_MAX:
                contents = [
                    side.image.read(inode, 0, inode.size) for side, inode in ((self.old, before), (self.new, after))
                ]
                change.why, change.detail = explain(contents[0], contents[1])
        except ErofsFormatError as error:
            change.why = f"damaged: {error}"
            self._equal[pair] = False
        self._add(path, after, change)

    def _same(self, path: bytes, before: DiskInode, after: DiskInode) -> bool:
        """Whether contents of equal size are equal; the bytes in the image are used if they decide it."""
        if self._comparable and before.size and self._same_moved(path, before, after):
            return True
        one, other = self.old.extents(before), self.new.extents(after)
        if len(one) == len(other) == 1 and one[0].kind is Kind.RAW and _FORM(one[0]) == _FORM(other[0]):
            return self._same_plain(path, one[0], other[0])
        if self._same_stored(one, other):
            if any(a.address != b.address for a, b in zip(one, other, strict=True)):
                self.tally.moved.append(path)
                self.tally.moved_blocks += self._differing(after)
            return True
        for offset in range(0, before.size, WINDOW):
            if self.old.image.read(before, offset, WINDOW) != self.new.image.read(after, offset, WINDOW):
                return False
        self.tally.recoded.append(path)
        self.tally.recoded_blocks += self._differing(after)
        return True

    def _same_plain(self, path: bytes, one: Extent, other: Extent) -> bool:
        """As `_same`, for content stored uncompressed in one piece."""
        same = self._same_bytes(one.address, other.address, one.length)
        if same and one.address != other.address:
            self.tally.moved.append(path)
            self.tally.moved_blocks += self.blocks.differing(other.address, other.size)
        return same

    def _same_moved(self, path: bytes, before: DiskInode, after: DiskInode) -> bool:
        """Whether the file's data has moved as a whole, byte for byte; if so, it is tallied."""
        shift = shift_of(self.old.image, self.new.image, before, after)
        if shift is None:
            return False
        inside, moved, differing = self.new.image.backing.holds, False, 0
        for address, size, further in runs(self.old.extents(before), shift, WINDOW):
            place = address + further
            if not inside(place, size) or not self._same_bytes(address, place, size):
                return False
            moved = moved or further != 0
            differing += self.blocks.differing(place, size)
        if moved:
            self.tally.moved.append(path)
            self.tally.moved_blocks += differing
        return True

    def _same_stored(self, one: list[Extent], other: list[Extent]) -> bool:
        """Whether the stored bytes of a file prove its two contents equal; adjacent ones are compared together."""
        if list(map(_FORM, one)) != list(map(_FORM, other)):
            return False
        before = after = length = 0
        for a, b in zip(one, other, strict=True):
            if a.kind is Kind.HOLE:
                continue
            if a.kind in _DECODED:
                return False
            size = a.size if a.kind is Kind.ENCODED else a.length
            if a.address == before + length and b.address == after + length and length + size <= WINDOW:
                length += size
                continue
            if not self._same_bytes(before, after, length):
                return False
            before, after, length = a.address, b.address, size
        return self._same_bytes(before, after, length)

    def _same_bytes(self, before: int, after: int, length: int) -> bool:
        one, other = self.old.image.backing, self.new.image.backing
        return not length or one.read(before, length, "file data") == other.read(after, length, "file data")

    def _differing(self, inode: DiskInode) -> int:
        """Blocks of the new image that contain data of the inode and differ in place."""
        return sum(
            self.blocks.differing(extent.address, extent.size)
            for extent in self.new.extents(inode)
            if extent.kind not in (Kind.HOLE, Kind.FRAGMENT)
        )

    def _packages(self) -> None:
        """Packages whose version or files changed, those with the most blocks first."""
        one, other = self.old.installed, self.new.installed
        names = {name for name in self._files if name}
        names |= {
            n for n in one.versions.keys() | other.versions.keys() if one.versions.get(n) != other.versions.get(n)
        }
        found = [
            PackageChange(
                self.report.place(), name, one.versions.get(name), other.versions.get(name),
                len(self._files.get(name, ())), self._blocks.get(name, 0),
            )
            for name in names
        ]  # fmt: skip
        self.report.packages += sorted(found, key=lambda p: (-p.blocks, -p.files, p.name))

    def _placement(self) -> None:
        """What differs although contents do not: one change per reason."""
        tally, found = self.tally, self.report.changes
        for what, why, paths, count in (
            ("placement", "the same bytes lie elsewhere", tally.moved, tally.moved_blocks),
            ("encoding", "codec, level, pcluster or fragment", tally.recoded, tally.recoded_blocks),
        ):
            if paths:
                names = ["/" + fsdecode(path) for path in paths[:PATHS_SHOWN]]
                names += [f"… {len(paths) - PATHS_SHOWN} files more"] if len(paths) > PATHS_SHOWN else []
                text = f"{len(paths)} files with the same content"
                self.report.add(Change(what, "", what, text, text, why, blocks=count, detail=names))
        if self.blocks.total and len(found) == self._before:
            self.report.add(
                Change("metadata", "", "bytes", None, None, "no field and no content differs", blocks=self.blocks.total,
                       detail=self._regions())
            )  # fmt: skip

    def _regions(self) -> list[str]:
        """What the first differing blocks belong to."""
        lines: dict[str, None] = {}
        size = self.blocks.block_size
        for region in map_image(self.new.image).regions:
            if self.blocks.differing(region.start, region.end - region.start):
                lines[f"{region.kind} {region.label}".rstrip() + f" at {region.start // size * size:#x}"] = None
            if len(lines) > PATHS_SHOWN:
                break
        return list(lines)

    def _sentences(self) -> None:
        tally, blocks, say = self.tally, self.blocks, self.report.say
        changed = len(set().union(*self._files.values())) if self._files else 0
        say(f"{changed} of {len(self.new.entries)} paths differ; {blocks.total} of {blocks.count} blocks differ")
        if self._files.get(""):
            say(f"not from a package: {len(self._files[''])} of these paths, {self._blocks.get('', 0)} blocks")
        stamps = [change for change in self.report.changes[self._before :] if change.what == "mtime"]
        if stamps:
            say(f"{len(stamps)} paths have a different time")
        if tally.moved:
            say(
                f"{len(tally.moved)} files with the same content have moved: {tally.moved_blocks} blocks differ by"
                " placement alone"
            )
        if tally.recoded:
            say(
                f"{len(tally.recoded)} files with the same content are stored differently (codec, level, pcluster,"
                f" fragment): {tally.recoded_blocks} blocks"
            )


def _time(inode: DiskInode) -> str:
    seconds, rest = divmod(inode.mtime_ns, 1_000_000_000)
    return f"{seconds}.{rest:09d}" if rest else str(seconds)
