# SPDX-License-Identifier: Apache-2.0
"""A FAT16 or FAT32 volume from a list of files; its bytes depend only on the files and the arguments.

Source: Microsoft FAT specification (fatgen103) for the boot sector, FSInfo, FAT and directory entries, the rule that
the cluster count alone decides between FAT16 and FAT32, and the checksum of short names.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

from erofs_edge.disk.fat_names import aliases, check_label, check_name, long_count, long_entries
from erofs_edge.disk.sparse import copied_from, copy_data
from erofs_edge.errors import CapacityError, FormatError, SourceError
from erofs_edge.writing import sparse_beside, write_exactly

FAT16_MIN, FAT32_MIN = 4085, 65525  # clusters
FAT32_MAX = 0x0FFFFFF5
MARGIN = 16  # distance in clusters from the two limits, where drivers are known to be off by a few
CLUSTER_MAX = 32 << 10
CLUSTER_GOOD = 4096  # larger ones only if the volume needs them
ROOT_ENTRIES = 512  # for FAT16
FILE_MAX = (1 << 32) - 1
DIRECTORY_MAX = 65536 * 32
ENTRY = 32

_ATTR_LABEL, _ATTR_DIRECTORY, _ATTR_ARCHIVE = 0x08, 0x10, 0x20
# jump, OEM name, bytes per sector, sectors per cluster, reserved sectors, FATs, root entries, total 16, media,
# FAT size 16, sectors per track, heads, hidden sectors, total 32
_BPB = Struct("<3s8sHBHBHHBHHHII")
_BPB32 = Struct("<IHHIHH12x")  # FAT size 32, flags, version, root cluster, FSInfo sector, backup boot sector
_BPB_END = Struct("<BBBI11s8s")  # drive, reserved, 0x29, serial, label, type
_DIRENT = Struct("<11sBBBHHHHHHHI")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Layout of a volume; sizes in bytes unless stated otherwise."""

    bits: int
    sector: int
    cluster: int
    sectors: int
    reserved: int
    """sectors before the first FAT"""
    fat_sectors: int
    clusters: int

    @property
    def root_size(self) -> int:
        return 0 if self.bits == 32 else ROOT_ENTRIES * ENTRY

    @property
    def fat_start(self) -> int:
        return self.reserved * self.sector

    @property
    def root_start(self) -> int:
        """Of FAT16's fixed root directory; on FAT32 the same as data_start."""
        return self.fat_start + 2 * self.fat_sectors * self.sector

    @property
    def data_start(self) -> int:
        return self.root_start + self.root_size

    def offset(self, cluster: int) -> int:
        return self.data_start + (cluster - 2) * self.cluster


@dataclass(slots=True)
class _Node:
    """A file or directory to be stored. `first` is its first cluster, 0 for an empty file."""

    name: str
    content: Path | bytes | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    size: int = 0
    first: int = 0

    @property
    def is_dir(self) -> bool:
        return self.content is None


def build_fat(
    files: Mapping[str, Path | bytes],
    out: Path,
    *,
    size: int,
    label: str,
    serial: int,
    epoch: int,
    sector: int = 512,
) -> None:
    """Write a FAT volume of `size` bytes: sparse, beside `out` under a temporary name, then renamed.

    files   'overlays/x.dtbo' → content; directories follow from the names
    label   at most 11 characters; stored in capitals
    serial  32-bit volume id
    epoch   time of everything, seconds since 1970 (UTC; FAT covers 1980 to 2107)
    sector  bytes, 512 or 4096: that of the disk

    Makes FAT32 if there are enough clusters for it, else FAT16. Raises CapacityError, FormatError on names that FAT
    cannot store, SourceError if a file cannot be read or changes meanwhile.
    """
    geometry = plan_geometry(size, sector)
    root = _tree(files)
    used = _place(root, geometry)
    if used > geometry.clusters:
        raise CapacityError(
            f"FAT volume of {size} bytes: the files need {(used - geometry.clusters) * geometry.cluster} bytes more",
            where=str(out),
            hint="largest: " + ", ".join(f"{path} ({length} bytes)" for path, length in _largest(root)),
        )
    with sparse_beside(out, size, "the FAT volume") as fd:
        _write_volume(fd, geometry, root, used=used, label=check_label(label), serial=serial, stamp=_fat_time(epoch))


def plan_geometry(size: int, sector: int = 512) -> Geometry:
    """FAT type, cluster size and layout for a volume. Raises CapacityError if it is too small or too large."""
    for bits, minimum, maximum in ((32, FAT32_MIN, FAT32_MAX), (16, FAT16_MIN, FAT32_MIN)):
        fitting = []
        cluster = sector
        while cluster <= CLUSTER_MAX:
            geometry = _lay_out(bits, size // sector, sector, cluster)
            if minimum + MARGIN <= geometry.clusters <= maximum - MARGIN:
                fitting.append(geometry)
            cluster *= 2
        if fitting:
            good = [geometry for geometry in fitting if geometry.cluster <= CLUSTER_GOOD]
            return good[-1] if good else fitting[0]
    raise CapacityError(f"a FAT volume cannot have {size} bytes", hint="at least 3M (17M with 4096-byte sectors)")


def _lay_out(bits: int, sectors: int, sector: int, cluster: int) -> Geometry:
    """Data begins at a multiple of both a cluster and 4096 bytes; the reserved sectors fill the gap."""
    per_cluster = cluster // sector
    root_sectors = 0 if bits == 32 else ROOT_ENTRIES * ENTRY // sector
    reserved = 32 if bits == 32 else 1
    fat_sectors = -(-((sectors // per_cluster + 2) * bits // 8) // sector)
    grain = max(cluster, 4096) // sector
    reserved += -(reserved + 2 * fat_sectors + root_sectors) % grain
    clusters = max(0, sectors - reserved - 2 * fat_sectors - root_sectors) // per_cluster
    return Geometry(bits, sector, cluster, sectors, reserved, fat_sectors, clusters)


def _tree(files: Mapping[str, Path | bytes]) -> _Node:
    root = _Node("")
    for path, content in sorted(files.items()):
        node = root
        *parents, name = path.strip("/").split("/")
        for part in parents:
            check_name(part, path)
            node = node.children.setdefault(part.upper(), _Node(part))
            if not node.is_dir:
                raise FormatError("a file stands where a directory is needed", where=path)
        check_name(name, path)
        if name.upper() in node.children:
            raise FormatError("two names that FAT takes for the same", where=path)
        node.children[name.upper()] = _Node(name, content, size=_content_size(content, path))
    return root


def _content_size(content: Path | bytes, path: str) -> int:
    try:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(content)) from error
    if size > FILE_MAX:
        raise CapacityError(f"{size} bytes: a file on FAT has less than 4 GiB", where=path)
    return size


def _place(root: _Node, geometry: Geometry) -> int:
    """Give each node its first cluster, in the order of the names, and return how many clusters are used.

    Each gets consecutive clusters; a directory comes before its contents.
    """
    taken = 0
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_dir:
            node.size = _directory_size(node, is_root=node is root)
            if node.size > (DIRECTORY_MAX if geometry.bits == 32 or node is not root else geometry.root_size):
                raise CapacityError(f"too many names in directory {node.name or '/'!r}")
            stack += [child for _, child in sorted(node.children.items(), reverse=True)]
        if node is root and geometry.bits != 32:
            continue
        count = _cluster_count(node, geometry)
        node.first = taken + 2 if count else 0
        taken += count
    return taken


def _cluster_count(node: _Node, geometry: Geometry) -> int:
    return -(-node.size // geometry.cluster)


def _directory_size(node: _Node, *, is_root: bool) -> int:
    """Bytes of a directory's entries: the label in the root, '.' and '..' elsewhere, one or more per name."""
    entries = 1 if is_root else 2
    short = aliases(node.children)
    return ENTRY * (entries + sum(1 + long_count(child.name, short[key]) for key, child in node.children.items()))


def _write_volume(
    fd: int, geometry: Geometry, root: _Node, *, used: int, label: bytes, serial: int, stamp: tuple[int, int]
) -> None:
    boot = _boot_sector(geometry, label, serial)
    write_exactly(fd, boot, 0)
    chains = array("I", [0x0FFFFFF8, 0x0FFFFFFF] if geometry.bits == 32 else [0xFFF8, 0xFFFF])
    end = 0x0FFFFFFF if geometry.bits == 32 else 0xFFFF
    for node, parent in _walk(root):
        if node is not root or geometry.bits == 32:
            count = _cluster_count(node, geometry)
            if count:
                chains.extend(range(node.first + 1, node.first + count))
                chains.append(end)
        at = geometry.root_start if node is root and geometry.bits != 32 else geometry.offset(node.first)
        if node.is_dir:
            write_exactly(fd, _directory(node, parent, label, stamp), at)
        else:
            _write_content(fd, node, at)
    fat = _little_endian(chains if geometry.bits == 32 else array("H", chains))
    for copy in range(2):
        write_exactly(fd, fat, geometry.fat_start + copy * geometry.fat_sectors * geometry.sector)
    if geometry.bits == 32:
        info = _fs_info(geometry, used)
        write_exactly(fd, info, geometry.sector)
        write_exactly(fd, boot, 6 * geometry.sector)
        write_exactly(fd, info, 7 * geometry.sector)


def _walk(root: _Node) -> Iterator[tuple[_Node, _Node]]:
    """(node, parent) in the order in which _place assigned clusters."""
    stack = [(root, root)]
    while stack:
        node, parent = stack.pop()
        yield node, parent
        stack += [(child, node) for _, child in sorted(node.children.items(), reverse=True)]


def _little_endian(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _boot_sector(geometry: Geometry, label: bytes, serial: int) -> bytes:
    fat32 = geometry.bits == 32
    small = geometry.sectors < 1 << 16 and not fat32
    head = _BPB.pack(
        b"\xeb\x58\x90" if fat32 else b"\xeb\x3c\x90",
        b"MSWIN4.1",
        geometry.sector,
        geometry.cluster // geometry.sector,
        geometry.reserved,
        2,
        0 if fat32 else ROOT_ENTRIES,
        geometry.sectors if small else 0,
        0xF8,
        0 if fat32 else geometry.fat_sectors,
        32,  # sectors per track and heads: cylinders of 1 MiB, which mtools considers consistent
        64,
        0,
        0 if small else geometry.sectors,
    )
    middle = _BPB32.pack(geometry.fat_sectors, 0, 0, 2, 1, 6) if fat32 else b""
    tail = _BPB_END.pack(0x80, 0, 0x29, serial & 0xFFFFFFFF, label, b"FAT32   " if fat32 else b"FAT16   ")
    sector = bytearray((head + middle + tail).ljust(geometry.sector, b"\0"))
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def _fs_info(geometry: Geometry, used: int) -> bytes:
    sector = bytearray(geometry.sector)
    sector[0:4] = b"RRaA"
    following = used + 2 if used < geometry.clusters else 0xFFFFFFFF
    sector[484:496] = b"rrAa" + (geometry.clusters - used).to_bytes(4, "little") + following.to_bytes(4, "little")
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def _directory(node: _Node, parent: _Node, label: bytes, stamp: tuple[int, int]) -> bytes:
    entries = []
    if node is parent:
        entries.append(_entry(label, _ATTR_LABEL, 0, 0, stamp))
    else:
        up = parent.first if parent.name else 0  # the root counts as cluster 0 here, wherever it is
        entries.append(_entry(b".".ljust(11), _ATTR_DIRECTORY, node.first, 0, stamp))
        entries.append(_entry(b"..".ljust(11), _ATTR_DIRECTORY, up, 0, stamp))
    short = aliases(node.children)
    for key, child in sorted(node.children.items()):
        entries += long_entries(child.name, short[key])
        attribute = _ATTR_DIRECTORY if child.is_dir else _ATTR_ARCHIVE
        entries.append(_entry(short[key], attribute, child.first, 0 if child.is_dir else child.size, stamp))
    return b"".join(entries)


def _entry(name: bytes, attribute: int, cluster: int, size: int, stamp: tuple[int, int]) -> bytes:
    date, clock = stamp
    return _DIRENT.pack(
        name, attribute, 0, 0, clock, date, date, cluster >> 16, clock, date, cluster & 0xFFFF, size
    )  # fmt: skip


def _write_content(fd: int, node: _Node, at: int) -> None:
    if isinstance(node.content, bytes):
        write_exactly(fd, node.content, at)
    elif node.content is not None:
        with copied_from(node.content) as source:
            copy_data(source, fd, node.size, at)


def _fat_time(epoch: int) -> tuple[int, int]:
    """(date, time) words, UTC, clipped to FAT's range; two-second steps."""
    moment = time.gmtime(min(max(epoch, 315532800), 4354819198))
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2


def _largest(root: _Node) -> list[tuple[str, int]]:
    """The five largest files."""
    found = []
    stack = [("", root)]
    while stack:
        prefix, node = stack.pop()
        for child in node.children.values():
            path = f"{prefix}/{child.name}".lstrip("/")
            if child.is_dir:
                stack.append((path, child))
            else:
                found.append((path, child.size))
    return sorted(found, key=lambda item: (-item[1], item[0]))[:5]
