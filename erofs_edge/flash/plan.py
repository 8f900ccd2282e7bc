# SPDX-License-Identifier: Apache-2.0
"""What a disk image requires of a target: regions in the order of writing, each with its data and its zeros.

The partition table comes last, so an interrupted write leaves a disk that cannot be mistaken for a good one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.disk import gpt
from erofs_edge.errors import CapacityError, FormatError
from erofs_edge.flash.image import Image
from erofs_edge.flash.slot_state import SlotUpdate
from erofs_edge.flash.target import Identity

if TYPE_CHECKING:
    from erofs_edge.disk.gpt_copies import Mend

STALE_TABLE = 1 << 20  # bytes at the end of a larger target, where an old table may be


class Region(NamedTuple):
    """A named range of the target. `data`: (start, end) byte ranges that the image has data for; the rest must read as
    zeros. If not `from_image`, all of it is zeros. Byte X of the target is byte X - `shift` of the image."""

    name: str
    start: int
    end: int
    data: tuple[tuple[int, int], ...]
    from_image: bool = True
    shift: int = 0
    in_partition: bool = True

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def data_bytes(self) -> int:
        return sum(end - start for start, end in self.data)

    def zeros(self) -> Iterator[tuple[int, int]]:
        """The ranges between the data."""
        position = self.start
        for start, end in self.data:
            if start > position:
                yield position, start
            position = end
        if position < self.end:
            yield position, self.end


class Plan(NamedTuple):
    """`contents` are written and proved first, then `table` (empty if the image has no partition table).
    With an `update`, the target keeps its table and one of its slots is written. `mend`: a copy of that table is
    damaged, and this is what mends it."""

    image: Path
    size: int
    contents: tuple[Region, ...]
    table: tuple[Region, ...]
    update: SlotUpdate | None = None
    mend: Mend | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.contents + self.table

    @property
    def data_bytes(self) -> int:
        return sum(region.data_bytes for region in self.regions)

    @property
    def mended_bytes(self) -> int:
        """Bytes to write so that both copies of the target's table are whole."""
        return 0 if self.mend is None else self.mend.size


def plan_flash(image: Path, target: Identity) -> Plan:
    """Plan how to make the target hold the image.

    Raises SourceError if the image cannot be read, CapacityError if a device is too small, FormatError if the image's
    partition table is for a different sector size.
    """
    with Image(image) as source:
        size = source.size
        table = source.table()
        if target.kind != "file" and target.size < size:
            raise CapacityError(
                f"the device has {target.size} bytes, the image needs {size - target.size} more",
                where=target.path,
                hint="use a larger device, or make disk.size in the board file smaller"
                if table
                else "use a larger device",
            )
        extents = source.extents()
    if table is None:
        contents = [_region("image", 0, size, extents)]
        return Plan(image, size, (*contents, *_stale_table(size, target)), ())
    if target.kind == "block" and table.sector_size != target.sector:
        raise FormatError(
            f"the image is made for sectors of {table.sector_size} bytes, the device has {target.sector}",
            where=str(image),
            hint=f"set disk.sector: {target.sector} in the board file and build again",
        )
    contents, head, tail = _divide(table, size, extents)
    return Plan(image, size, (*contents, *_stale_table(size, target)), (tail, head))


def _divide(table: gpt.Table, size: int, extents: list[tuple[int, int]]) -> tuple[list[Region], Region, Region]:
    """The partitions and the gaps between them; everything before the first; everything after the last."""
    sector = table.sector_size
    partitions = sorted(table.partitions, key=lambda p: p.first_lba)
    head_end = position = (partitions[0].first_lba if partitions else table.first_usable) * sector
    contents = []
    for partition in partitions:
        start, end = partition.first_lba * sector, (partition.last_lba + 1) * sector
        if start > position:
            contents.append(_region("unused", position, start, extents)._replace(in_partition=False))
        contents.append(_region(partition.name or "unnamed", start, end, extents))
        position = end
    return contents, _region("gpt", 0, head_end, extents), _region("gpt backup", position, size, extents)


def _region(name: str, start: int, end: int, extents: list[tuple[int, int]]) -> Region:
    data = [(max(a, start), min(b, end)) for a, b in extents if a < end and b > start]
    return Region(name, start, end, tuple(data))


def _stale_table(size: int, target: Identity) -> list[Region]:
    """The end of a larger target, where an old table could later be mistaken for the backup of ours."""
    if target.size <= size:
        return []
    return [
        Region(
            "old backup", max(size, target.size - STALE_TABLE), target.size, (), from_image=False, in_partition=False
        )
    ]
