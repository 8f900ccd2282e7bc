# SPDX-License-Identifier: Apache-2.0
"""A board's disk as a plan (what lies where), and the plan as an image file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk import gpt
from erofs_edge.disk.gpt import ALIGNMENT, guid_from
from erofs_edge.disk.sparse import Count, Progress, copied_from, copy_data, data_extents
from erofs_edge.errors import CapacityError, ManifestError, SourceError
from erofs_edge.manifest.model import Board, Partition, size_bytes
from erofs_edge.writing import sparse_beside, write_exactly

REST = "rest"
CONTENT_TYPES = {
    "firmware": (gpt.TYPE_ESP, 0),
    "esp": (gpt.TYPE_ESP, 0),
    "fit": (gpt.TYPE_LINUX, 0),
    "slot-state": (gpt.TYPE_LINUX, 0),
    "vbmeta": (gpt.TYPE_LINUX, 0),
    None: (gpt.TYPE_LINUX, 0),
}
ROOT_TYPE = (gpt.TYPE_ROOT_ARM64, gpt.ATTRIBUTE_READ_ONLY)  # all other contents are systems

Largest = Callable[[str], Sequence[tuple[str, int]]]
"""largest("system_a"): (path, bytes) of the largest files in that content"""


@dataclass(frozen=True, slots=True)
class Placement:
    """One partition on the disk: `start` and `size` in bytes, and the file that is its content, if any."""

    name: str
    start: int
    size: int
    content: Path | None


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """Everything that write_disk needs; `size` in bytes."""

    size: int
    table: gpt.Table
    placements: tuple[Placement, ...]

    def __getitem__(self, name: str) -> Placement:
        """The partition of that name ('system_a')."""
        return next(p for p in self.placements if p.name == name)

    def guid(self, name: str) -> str:
        """PARTUUID of a partition, lower case as Linux prints it."""
        return str(next(p.guid for p in self.table.partitions if p.name == name))


def partition_names(name: str, partition: Partition) -> list[str]:
    """'boot' with slots a and b becomes boot_a and boot_b; without slots it stays as it is."""
    return [f"{name}_{slot}" for slot in partition.slots] or [name]


def plan_disk(
    board: Board,
    contents: Mapping[str, Path],
    seed: bytes,
    *,
    position: Callable[[str], str | None] = lambda key: None,
    largest: Largest | None = None,
) -> DiskLayout:
    """Place a board's partitions, in the order of the board file, each on whole MiB.

    contents  partition name (with slots, 'boot_a') → file; partitions without one stay empty
    seed      what the GUIDs derive from
    position  returns where a key of the board file is ("disk.partitions.boot"), for messages

    Raises CapacityError if a content or the disk is too small, ManifestError if the sizes are inconsistent.
    """
    disk = board.disk
    disk_size = _size(disk.size, "disk.size", position)
    if disk_size % ALIGNMENT:
        raise ManifestError(f"disk size {disk.size} is not a whole number of MiB", where=position("disk.size"))
    names = [name for key, partition in disk.partitions.items() for name in partition_names(key, partition)]
    for name in contents:
        if name not in names:
            raise ManifestError(f"there is content for {name!r}, but no such partition", where=position("disk"))
    if len(set(names)) != len(names):
        raise ManifestError("two partitions have the same name", where=position("disk.partitions"))
    sizes = _sizes(board, disk_size, position)

    placements, entries = [], []
    start = ALIGNMENT
    for key, partition in disk.partitions.items():
        type_guid, attributes = CONTENT_TYPES.get(partition.content, ROOT_TYPE)
        for name in partition_names(key, partition):
            size, content = sizes[key], contents.get(name)
            if content is not None:
                _check_fits(name, content, size, position(f"disk.partitions.{key}"), largest)
            placements.append(Placement(name, start, size, content))
            first, last = start // disk.sector, (start + size) // disk.sector - 1
            entries.append(gpt.Partition(name, type_guid, guid_from(seed, name), first, last, attributes))
            start += size
    table = gpt.Table(
        guid_from(seed, ""), disk_size // disk.sector, tuple(entries), disk.sector, hybrid=_hybrid(board, entries)
    )  # fmt: skip
    return DiskLayout(disk_size, table, tuple(placements))


def write_disk(layout: DiskLayout, out: Path, progress: Progress | None = None) -> None:
    """Write the image: sparse, beside `out` under a temporary name, then renamed.

    Raises CapacityError if the host's disk is full, SourceError if a content cannot be read or its size has changed
    since it was planned. Nothing is left behind then, nor after Ctrl-C.
    """
    head, tail = gpt.encode(layout.table)
    count = _counter(layout, progress)
    with sparse_beside(out, layout.size, "the disk image") as fd:
        write_exactly(fd, head, 0)
        for placement in layout.placements:
            if placement.content is not None:
                _copy_content(placement, placement.content, fd, count)
        write_exactly(fd, tail, layout.size - len(tail))


def _counter(layout: DiskLayout, progress: Progress | None) -> Count | None:
    if progress is None:
        return None
    total, done = 0, 0
    for placement in layout.placements:
        if placement.content is not None:
            with placement.content.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                total += sum(end - start for start, end in data_extents(file.fileno(), size))

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def _copy_content(placement: Placement, content: Path, target: int, count: Count | None) -> None:
    with copied_from(content) as source:
        size = os.fstat(source).st_size
        if size > placement.size:
            raise SourceError("the file has grown since its size was planned", where=str(content))
        copy_data(source, target, size, placement.start, count)


def _sizes(board: Board, disk_size: int, position: Callable[[str], str | None]) -> dict[str, int]:
    """Bytes of one slot of each partition of the board file, rounded up to whole MiB, with 'rest' computed."""
    sizes: dict[str, int] = {}
    rest = None
    used = 2 * ALIGNMENT  # the two tables
    for key, partition in board.disk.partitions.items():
        where = f"disk.partitions.{key}.size"
        if partition.size == REST:
            if rest is not None or partition.slots:
                raise ManifestError("only one partition without slots can take the rest", where=position(where))
            rest = key
            continue
        size = -(-_size(partition.size, where, position) // ALIGNMENT) * ALIGNMENT
        sizes[key] = size
        used += size * len(partition_names(key, partition))
        if used > disk_size:
            raise CapacityError(
                f"partition {key!r} ends {_mib(used - disk_size)} after the end of the disk of {_mib(disk_size)}",
                where=position(where),
                hint="make disk.size larger or a partition smaller",
            )
    if rest is not None:
        sizes[rest] = disk_size - used
        if not sizes[rest]:
            raise CapacityError(
                f"no space is left for partition {rest!r}",
                where=position(f"disk.partitions.{rest}.size"),
                hint="make disk.size larger or a partition smaller",
            )
    return sizes


def _size(value: str | int, key: str, position: Callable[[str], str | None]) -> int:
    try:
        size = size_bytes(value)
    except ValueError:
        size = 0
    if size <= 0:
        raise ManifestError(
            f"{value!r} is not a size",
            where=position(key),
            hint="a number of bytes, or with K, M or G, for example 64M",
        )
    return size


def _check_fits(name: str, content: Path, size: int, where: str | None, largest: Largest | None) -> None:
    try:
        needed = content.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(content)) from error
    if needed <= size:
        return
    hint = f"give it {-(-needed // ALIGNMENT)}M"
    if largest is not None and (files := largest(name)):
        hint += "; its largest files: " + ", ".join(f"{path} ({_mib(length)})" for path, length in files)
    raise CapacityError(
        f"partition {name!r} has {_mib(size)}, its content {_mib(needed)}: {needed - size} bytes too many",
        where=where,
        hint=hint,
    )


def _hybrid(board: Board, entries: list[gpt.Partition]) -> int | None:
    """Index of the first FAT partition, if the board wants it in the MBR as well."""
    if not board.disk.hybrid_mbr:
        return None
    return next((i for i, entry in enumerate(entries) if entry.type_guid == gpt.TYPE_ESP), None)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
