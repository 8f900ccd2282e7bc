# SPDX-License-Identifier: Apache-2.0
"""Check a whole image: every structure, every name, every byte of data.

Stricter than ``fsck.erofs --extract`` and than the kernel, which checks lazily: here a wrong superblock checksum,
unsorted directories, wrong "." and ".." entries, wrong link counts, overlapping data and non-zero padding are errors.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import place
from erofs_edge.erofs.coverage import Coverage
from erofs_edge.erofs.decode import decode_lent
from erofs_edge.erofs.device_table import device_at
from erofs_edge.erofs.dirents import Dirent, padding_is_zero, parse_block
from erofs_edge.erofs.extents import Extent, Kind, chunk_table, stored_blocks
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.inplace import InPlace, obstacle
from erofs_edge.erofs.output_limit import output_limit_of
from erofs_edge.erofs.read import PIECE, Image
from erofs_edge.erofs.superblock import CHECKSUM_OFFSET
from erofs_edge.erofs.told_digests import Wrong, wrong_devices, wrong_fingerprints
from erofs_edge.erofs.walk import DEPTH_MAX
from erofs_edge.erofs.xattrs import filter_bit_of
from erofs_edge.errors import ErofsFormatError
from erofs_edge.forks import may_fork
from erofs_edge.names import fsdecode
from erofs_edge.task_processes import in_processes

if TYPE_CHECKING:
    from concurrent.futures import Future

FINDINGS_MAX = 1000
_UNCOUNTED = ondisk.INCOMPAT_ZTAILPACKING | ondisk.INCOMPAT_FRAGMENTS | ondisk.INCOMPAT_METABOX
_BATCH_BYTES, _BATCH_EXTENTS = 4 << 20, 256
_WORTH_FORKING = 8 << 20  # bytes of an image
_Batch = list[tuple[Any, ...]]
"""nid and extent, without its kind, of encoded extents: plain values, which processes are sent quickly"""
_Wrong = tuple[str, str | None, bytes]
"""message, place and path"""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong. `severity` is "error" (violates the format) or "warning" (readers do not mind)."""

    severity: str
    message: str
    where: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        parts = [part for part in (self.path, self.where, self.message) if part]
        return f"{self.severity}: " + ": ".join(parts)


@dataclass(slots=True)
class Report:
    """What a check found and how much it covered. `data_bytes` counts decoded bytes; `in_place` counts compressed data
    by whether Linux can decompress it in place."""

    findings: list[Finding] = field(default_factory=list)
    inodes: int = 0
    files: int = 0
    directories: int = 0
    data_bytes: int = 0
    in_place: InPlace = field(default_factory=InPlace)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def ok(self) -> bool:
        return not self.errors


def check(
    path: Path | str,
    *,
    devices: Sequence[Path | str] = (),
    offset: int = 0,
    jobs: int | None = None,
    further: Sequence[tuple[int, int, str]] = (),
    limit: int | None = None,
) -> Report:
    """Check an image (from byte `offset` of the file on) and its extra devices. Reports at most FINDINGS_MAX findings.

    `further` are structures that other tools put into it: byte, size and name of each. `limit` is how many bytes may be
    decoded; None: as much as an image of this size can plausibly hold. Raises ErofsEdgeError only if a file cannot be
    read.
    """
    report = Report()
    try:
        image = Image(path, devices=devices, offset=offset, verify_checksum=False)
    except ErofsFormatError as error:
        report.findings.append(Finding("error", error.message, error.where))
        return report
    with image:
        allowed = output_limit_of(image) if limit is None else limit
        checking = _Check(image, report, jobs or min(4, os.cpu_count() or 1), allowed)
        for at, size, what in further:
            checking.coverage.metadata(at, size, what)
        checking.run()
    return report


class _Check:
    """The state of a check: what has been seen, and what each byte belongs to."""

    def __init__(self, image: Image, report: Report, jobs: int, left: int) -> None:
        self.image, self.report, self.jobs, self.left = image, report, jobs, left
        self.info = image.superblock
        present = {
            number: device.blocks
            for number, device in enumerate(self.info.devices, 1)
            if number not in image.missing_devices
        }
        self.coverage = Coverage(self.info.size, self.info.block_size, present)
        self.inodes: dict[int, tuple[DiskInode, bytes]] = {}  # with the first path found
        self.names: dict[int, int] = {}  # nid → number of entries for it, without dots
        self.subdirectories: dict[int, int] = {}
        self.nameless: set[int] = set()
        self.decoded: dict[int, tuple[int, bool]] = {}  # address → length and partial flag last verified

    def error(self, message: str, where: int | str | None = None, path: bytes | None = None) -> None:
        self._find("error", message, where, path)

    def warn(self, message: str, where: int | str | None = None, path: bytes | None = None) -> None:
        self._find("warning", message, where, path)

    def _find(self, severity: str, message: str, where: int | str | None, path: bytes | None) -> None:
        if len(self.report.findings) < FINDINGS_MAX:
            shown = None if path is None else fsdecode(b"/" + path)
            where = place(where) if isinstance(where, int) else where
            self.report.findings.append(Finding(severity, message, where, shown))

    def run(self) -> None:
        info = self.info
        if not info.checksum_ok:
            self.error(
                f"superblock checksum is {info.raw.checksum:#010x}, the bytes have {info.checksum:#010x}",
                CHECKSUM_OFFSET,
            )
        for number, bit, name, at in (
            (info.raw.packed_nid, ondisk.INCOMPAT_FRAGMENTS, "a packed inode", 96),
            (info.raw.xattr_prefix_count, ondisk.INCOMPAT_XATTR_PREFIXES, "long xattr prefixes", 91),
        ):
            if number and not info.incompat(bit):
                self.error(f"the superblock names {name} without the feature", ondisk.SUPER_OFFSET + at)
        table = len(info.devices) * ondisk.DEVICE_SLOT.size
        self.coverage.metadata(info.raw.devt_slotoff * ondisk.DEVICE_SLOT.size, table, "device table")
        for number in self.image.missing_devices:
            self.warn(f"device {number} is not given: its data is not checked")
        self._digests(wrong_devices(self.image))
        records = sum(2 + len(record) for record in info.records.values())
        self.coverage.metadata(ondisk.SUPER_OFFSET, info.super_size + records, "superblock")
        self._prefixes()
        self._tree()
        self._nameless()
        self._links()
        overlaps = list(self.coverage.metadata_overlaps())
        for message, where in overlaps:
            self.error(message, where)
        if not overlaps:  # a few index bytes shared by many inodes would take forever
            self._all_data()
            if self.coverage.has_unaligned:
                for message, where in self.coverage.metadata_overlaps():
                    self.error(message, where)
            self._fingerprints()
        # with too much data, not all of it was examined
        stray = list(self.coverage.stray_bytes(self.image.backing)) if self.left >= 0 else []
        if stray:
            self.warn(f"non-zero bytes that belong to nothing, in {len(stray)} places from here on", stray[0])

    def _prefixes(self) -> None:
        try:
            self.coverage.metadata(*self.image.prefix_table(), "long xattr prefixes")
        except ErofsFormatError as error:
            self.error(error.message, error.where)

    # names

    def _tree(self) -> None:
        root = self.image.root_nid
        parents = {root: root}
        stack = [(root, b"", 0)]
        self._inode(root, b"")
        budget = 16 * self.info.size + PIECE
        while stack and len(self.report.findings) < FINDINGS_MAX:
            nid, path, depth = stack.pop()
            inode = self.inodes[nid][0]
            self.report.directories += 1
            budget -= inode.size
            if budget < 0 or depth > DEPTH_MAX:
                self.error("directories are larger or nested deeper than the image can hold", inode.offset, path)
                return
            below = []
            for entry in self._entries(inode, path, parents[nid]):
                child_path = path + b"/" + entry.name if path else entry.name
                child = self._inode(entry.nid, child_path)
                if child is None:
                    continue
                self._type(entry, child, child_path)
                if not child.is_dir:
                    self.names[entry.nid] = self.names.get(entry.nid, 0) + 1
                    continue
                self.subdirectories[nid] = self.subdirectories.get(nid, 0) + 1
                if entry.nid in parents:
                    self.error(f"directory {entry.nid} is reached twice", inode.offset, child_path)
                    continue
                parents[entry.nid] = nid
                below.append((entry.nid, child_path, depth + 1))
            stack += reversed(below)

    def _entries(self, inode: DiskInode, path: bytes, parent: int) -> Iterator[Dirent]:
        """Yield the entries of a directory without dots; report what is wrong with them."""
        dots = {b"..": parent} if inode.dot_omitted else {b".": inode.nid, b"..": parent}
        previous = b""
        try:
            for data in self.image.directory_blocks(inode):
                entries = parse_block(data, inode.offset)
                if entries[0].name <= previous:
                    self.error(f"directory entry {entries[0].name!r} is out of order", inode.offset, path)
                previous = entries[-1].name
                if not padding_is_zero(data, entries):
                    self.error("directory block has non-zero bytes behind its names", inode.offset, path)
                for entry in entries:
                    if entry.name not in (b".", b".."):
                        yield entry
                        continue
                    must = dots.pop(entry.name, None)
                    if entry.nid != must or entry.file_type != ondisk.FILE_TYPES[stat.S_IFDIR]:
                        self.error(f"entry {entry.name!r} is nid {entry.nid}, must be {must}", inode.offset, path)
        except ErofsFormatError as error:
            self.error(error.message, error.where, path)
            return
        if dots:
            self.error(f"directory lacks {', '.join(fsdecode(name) for name in dots)}", inode.offset, path)

    def _type(self, entry: Dirent, inode: DiskInode, path: bytes) -> None:
        if entry.file_type != ondisk.FILE_TYPES[stat.S_IFMT(inode.mode)]:
            self.error(f"entry has type {entry.file_type}, its inode mode {inode.mode:#o}", inode.offset, path)

    # inodes

    def _inode(self, nid: int, path: bytes) -> DiskInode | None:
        """Return the inode, checking its metadata on first use; None if there is none."""
        if nid in self.inodes:
            return self.inodes[nid][0]
        try:
            inode = self.image.inode(nid)
        except ErofsFormatError as error:
            self.error(error.message, error.where, path)
            return None
        self.inodes[nid] = inode, path
        self.report.inodes += 1
        self.coverage.metadata(inode.offset, inode.header_size + inode.xattr_size, f"inode {nid}")
        try:
            self._xattrs(inode, path)
            if stat.S_ISLNK(inode.mode):
                self.image.readlink(inode)
            elif not (stat.S_ISREG(inode.mode) or inode.is_dir) and inode.size:
                self.error(f"special file with a size of {inode.size}", inode.offset, path)
            self._map_metadata(inode)
        except ErofsFormatError as error:
            self.error(error.message, error.where, path)
        return inode

    def _xattrs(self, inode: DiskInode, path: bytes) -> None:
        if not inode.xattr_size:
            return
        area = self.image.xattr_area(inode)
        for name in area.duplicates:
            self.error(f"xattr {fsdecode(name)} comes twice", inode.offset, path)
        info = self.info.raw
        if info.feature_compat & ondisk.COMPAT_XATTR_FILTER and not info.xattr_filter_reserved:
            hidden = [fsdecode(name) for name in area.items if area.filter >> filter_bit_of(name) & 1]
            if hidden:
                self.error(f"the name filter hides {', '.join(hidden)}", inode.offset + inode.header_size, path)
        for address, size in area.shared:
            self.coverage.shared_metadata(address, size, "shared xattr")

    def _map_metadata(self, inode: DiskInode) -> None:
        """Record the chunk table, cluster index or inline tail after an inode."""
        if not inode.size:
            return
        what = f"inode {inode.nid}"
        if inode.is_compressed:
            zmap = self.image.zmap(inode)
            start = -(-inode.body // 8) * 8
            self.coverage.metadata(start, zmap.position + zmap.index_size + zmap.idata_size - start, f"index of {what}")
        elif inode.layout == ondisk.LAYOUT_CHUNK_BASED:
            table, entry, count, _ = chunk_table(self.image.backing, self.info, inode)
            self.coverage.metadata(table, entry * count, f"chunk table of {what}")
        elif inode.layout == ondisk.LAYOUT_FLAT_INLINE:
            self.coverage.metadata(inode.body, inode.size % self.info.block_size, f"inline tail of {what}")

    def _nameless(self) -> None:
        """Check the packed inode and the metabox inode, which have no name."""
        raw = self.info.raw
        packed = raw.packed_nid if self.info.incompat(ondisk.INCOMPAT_FRAGMENTS) else 0
        for nid, what, at in ((packed, "packed", 96), (self.info.metabox_nid, "metabox", 128)):
            if not nid:
                continue
            if nid in self.inodes:
                self.error(f"the {what} inode has a name", ondisk.SUPER_OFFSET + at, self.inodes.pop(nid)[1])
            try:
                inode = self.image.packed if nid == packed else self.image.metabox
            except ErofsFormatError as error:
                self.error(error.message, error.where)
                continue
            self.nameless.add(nid)
            self._inode(inode.nid, f"({what} inode)".encode())

    def _links(self) -> None:
        count = len(self.inodes)
        if self.info.raw.inos != count:
            self.warn(f"superblock counts {self.info.raw.inos} inodes, there are {count}", ondisk.SUPER_OFFSET + 16)
        for nid, (inode, path) in self.inodes.items():
            if nid in self.nameless:
                continue
            links = 2 + self.subdirectories.get(nid, 0) if inode.is_dir else self.names.get(nid, 0)
            too_many = inode.is_dir and not inode.extended and links > 0xFFFF  # mkfs.erofs then writes 1
            if inode.nlink != (1 if too_many else links):
                self.error(f"link count is {inode.nlink}, there are {links}", inode.offset, path)

    def _fingerprints(self) -> None:
        """Kernels let files with equal fingerprints share pages, so each fingerprint must match its content."""
        if not self.info.raw.feature_compat & ondisk.COMPAT_ISHARE_XATTRS:
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.jobs) as pool:
            self._digests(wrong_fingerprints(self.image, self.inodes.values(), pool, max(0, self.left)))

    def _digests(self, found: Iterable[Wrong]) -> None:
        for wrong in found:
            (self.warn if wrong.unread else self.error)(wrong.message, wrong.offset, wrong.path)

    # data

    def _all_data(self) -> None:
        """Map every file and decode every extent once, in several processes or threads."""
        batches = self._batches()
        if self.jobs == 1:
            found: Iterable[_Wrong] = chain.from_iterable(map(self._decode_batch, batches))
        elif self.info.size >= _WORTH_FORKING and may_fork():
            found = self._in_processes(batches)
        else:
            found = self._on_threads(batches)
        for wrong in list(found):  # after whatever is found while mapping, in each of these ways
            self.error(*wrong)

    def _in_processes(self, batches: Iterable[_Batch]) -> list[_Wrong]:
        """Return what is wrong, in the order of the image; of very much only the first, as far as that is reported."""
        found: list[tuple[int, list[_Wrong]]] = []
        for one in in_processes(enumerate(batches), self.jobs, self._decode_batches):
            found.append(one)
            if len(found) > 2 * FINDINGS_MAX:
                found = sorted(found)[:FINDINGS_MAX]
        return [wrong for _, some in sorted(found) for wrong in some]

    def _decode_batches(self, _: int, batches: Iterator[tuple[int, _Batch]]) -> Iterator[tuple[int, list[_Wrong]]]:
        for number, batch in batches:
            if wrong := self._decode_batch(batch):
                yield number, wrong

    def _on_threads(self, batches: Iterable[_Batch]) -> Iterator[_Wrong]:
        from concurrent.futures import ThreadPoolExecutor

        pending: deque[Future[list[_Wrong]]] = deque()
        with ThreadPoolExecutor(self.jobs) as pool:
            for batch in batches:
                pending.append(pool.submit(self._decode_batch, batch))
                if len(pending) > 2 * self.jobs:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _batches(self) -> Iterator[_Batch]:
        batch: _Batch = []
        size = 0
        for inode, path in self.inodes.values():
            self.report.files += stat.S_ISREG(inode.mode) and inode.nid not in self.nameless
            try:
                for extent in self._mapped(inode, path):
                    if extent.kind is not Kind.ENCODED:
                        self._padding(extent, path)
                        continue
                    batch.append((inode.nid, *extent[:2], *extent[3:]))
                    size += extent.length
                    if size >= _BATCH_BYTES or len(batch) >= _BATCH_EXTENTS:
                        yield batch
                        batch, size = [], 0
            except ErofsFormatError as error:
                self.error(error.message, error.where, path)
                if self.left < 0:
                    break
        yield batch

    def _mapped(self, inode: DiskInode, path: bytes) -> Iterator[Extent]:
        """Yield the extents of an inode that have to be decoded, after adding them to the coverage."""
        zmap = self.image.zmap(inode) if inode.is_compressed and inode.size else None
        may_share = not inode.is_compressed or self.info.incompat(ondisk.INCOMPAT_DEDUPE)
        position = blocks = 0
        for extent in self.image.extents(inode, strict=True):
            blocks += stored_blocks(extent, self.info.block_size)
            if extent.start != position:
                raise ErofsFormatError(f"extent at {extent.start} follows data up to {position}")
            position += extent.length
            if extent.kind is Kind.FRAGMENT:
                if extent.address + extent.length > self.image.packed.size:
                    raise ErofsFormatError(f"fragment at {extent.address} lies outside the packed inode")
                continue
            if extent.kind is Kind.HOLE:
                continue
            if not extent.inline:
                overlap = self.coverage.data(extent, inode.layout, may_share)
                if overlap is not None:
                    self.error(f"data overlaps with {overlap}", extent.address, path)
            if self._is_new(extent):
                self._spend(extent)
                yield extent
        if position != inode.size:
            raise ErofsFormatError(f"extents end at {position} of {inode.size} bytes", where=place(inode.offset))
        if zmap and not zmap.record:
            self._block_count(inode, blocks, path)

    def _spend(self, extent: Extent) -> None:
        """Account for an extent that will be decoded. Raises ErofsFormatError if the limit is exceeded."""
        self.left -= extent.length
        if self.left < 0:
            raise ErofsFormatError("the image decodes to far more data than it should hold (--max-bytes allows more)")
        self.report.data_bytes += extent.length
        if extent.kind is Kind.ENCODED:
            self.report.in_place.count(extent, obstacle(self.image.backing, self.info, extent))

    def _block_count(self, inode: DiskInode, blocks: int, path: bytes) -> None:
        """mkfs.erofs counts too few blocks if tails, fragments or shared pclusters are involved."""
        loose = self.info.incompat(_UNCOUNTED)
        if inode.block > blocks or (inode.block < blocks and not loose):
            self.warn(f"the inode counts {inode.block} compressed blocks, there are {blocks}", inode.offset, path)

    def _is_new(self, extent: Extent) -> bool:
        """Whether this pcluster, on a given device, was not yet decoded this far and, if required, to its end."""
        missing, info = self.image.missing_devices, self.info
        if missing and device_at(extent.address, info.devices, info.raw.blkszbits) in missing:
            return False
        length, partial = self.decoded.get(extent.address, (0, True))
        if extent.length <= length if extent.partial else extent.length == length and not partial:
            return False
        self.decoded[extent.address] = extent.length, extent.partial
        return True

    def _padding(self, extent: Extent, path: bytes) -> None:
        if extent.kind is Kind.RAW and not extent.inline and extent.size > extent.length:
            end = extent.address + extent.length
            rest = self.image.backing.read(end, extent.size - extent.length, "padding")
            if rest.count(0) != len(rest):
                self.error("non-zero bytes behind the data", end, path)

    def _decode_batch(self, batch: _Batch) -> list[_Wrong]:
        """Return what does not decode."""
        wrong = []
        for nid, start, length, *rest in batch:
            try:
                decode_lent(self.image.backing, self.info, Extent(start, length, Kind.ENCODED, *rest))
            except ErofsFormatError as error:
                wrong.append((error.message, error.where, self.inodes[nid][1]))
        return wrong
