# SPDX-License-Identifier: Apache-2.0
"""Compare two disks or their images: partition tables, and the contents of each partition."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.diff.content import explain
from erofs_edge.diff.report import Change, Report
from erofs_edge.disk import gpt
from erofs_edge.disk.fat_read import Entry, Volume
from erofs_edge.disk.sparse import data_extents
from erofs_edge.positions import pread, pwrite
from erofs_edge.writing import scratch_folder

_SLICE = 4 << 20
Compare = Callable[[Path, Path, Report], None]
Area = tuple[int, int]
"""(first byte, bytes) of a disk"""


def find_table(path: Path) -> gpt.Table | None:
    """The partition table at a path, None if there is none. Raises FormatError for a damaged one."""
    with path.open("rb") as handle:
        return gpt.find(lambda offset, length: pread(handle.fileno(), length, offset), path.stat().st_size)


def compare_disks(old: Path, new: Path, tables: tuple[gpt.Table, gpt.Table], report: Report, deeper: Compare) -> None:
    """Compare two disks with their tables; `deeper` compares the contents of two partitions, given as files."""
    one, other = tables
    for name in ("disk_guid", "sectors", "sector_size", "hybrid"):
        report.field("partition table", "", name, getattr(one, name), getattr(other, name))
    sides = [{p.name: p for p in table.partitions} for table in tables]
    for name in [*sides[0], *(name for name in sides[1] if name not in sides[0])]:
        before, after = sides[0].get(name), sides[1].get(name)
        if before is None or after is None:
            report.add(Change("partition", name, "removed" if after is None else "added"))
            continue
        areas = _area(one, before), _area(other, after)
        for what in ("type_guid", "guid", "attributes"):
            report.field("partition table", name, what, getattr(before, what), getattr(after, what))
        report.field("partition table", name, "start", areas[0][0], areas[1][0])
        report.field("partition table", name, "size", areas[0][1], areas[1][1])
        report.compared.append(report.place(name))
        if _equal(old, new, areas):
            continue
        with report.inside(name), _cut(old, areas[0]) as first, _cut(new, areas[1]) as second:
            deeper(first, second, report)


def _area(table: gpt.Table, partition: gpt.Partition) -> Area:
    sector = table.sector_size
    return partition.first_lba * sector, (partition.last_lba - partition.first_lba + 1) * sector


def _equal(old: Path, new: Path, areas: tuple[Area, Area]) -> bool:
    if areas[0][1] != areas[1][1]:
        return False
    with old.open("rb") as one, new.open("rb") as other:
        for offset in range(0, areas[0][1], _SLICE):
            length = min(_SLICE, areas[0][1] - offset)
            before = pread(one.fileno(), length, areas[0][0] + offset)
            if before != pread(other.fileno(), length, areas[1][0] + offset):
                return False
    return True


@contextmanager
def _cut(path: Path, area: Area) -> Iterator[Path]:
    """A partition as a sparse file of its own."""
    start, size = area
    with scratch_folder("diff") as folder, path.open("rb") as source:
        out = folder / "partition"
        with out.open("wb") as target:
            for first, last in data_extents(source.fileno(), start + size, start):
                for offset in range(first, last, _SLICE):
                    piece = pread(source.fileno(), min(_SLICE, last - offset), offset)
                    pwrite(target.fileno(), piece, offset - start)
            target.truncate(size)
        yield out


def compare_volumes(old: Path, new: Path, report: Report) -> None:
    """Compare two FAT volumes, file by file. Raises FormatError if one is damaged."""
    before = len(report.changes)
    with old.open("rb") as one, new.open("rb") as other:
        volumes = [
            Volume(lambda offset, length, fd=fd: pread(fd, length, offset), os.fstat(fd).st_size)  # type: ignore[misc]
            for fd in (one.fileno(), other.fileno())
        ]
        for name in ("label", "serial", "bits", "cluster"):
            report.field("FAT", "volume", name, getattr(volumes[0], name), getattr(volumes[1], name))
        sides = [{entry.path: entry for entry in volume.files()} for volume in volumes]
        for path in sorted(sides[0].keys() | sides[1].keys()):
            _fat_file(path, volumes, sides[0].get(path), sides[1].get(path), report)
    if len(report.changes) == before:
        report.add(Change("FAT", "", "bytes", None, None, "no file differs: placement, or bytes that no file owns"))


def _fat_file(path: str, volumes: list[Volume], old: Entry | None, new: Entry | None, report: Report) -> None:
    if old is None or new is None:
        sizes = [f"{entry.size} bytes" if entry else None for entry in (old, new)]
        report.add(Change("FAT", path, "removed" if new is None else "added", sizes[0], sizes[1]))
        return
    report.field("FAT", path, "time", f"{old.stamp:#010x}", f"{new.stamp:#010x}", "timestamp")
    contents = [v.content(e.clusters, e.size) for v, e in zip(volumes, (old, new), strict=True)]
    if contents[0] != contents[1]:
        why, detail = explain(contents[0], contents[1])
        sizes = [f"{len(content)} bytes" for content in contents]
        report.add(Change("FAT", path, "content", sizes[0], sizes[1], why, detail=detail))
