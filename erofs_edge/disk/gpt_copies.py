# SPDX-License-Identifier: Apache-2.0
"""The two copies of a GUID partition table: which one is damaged, and what to write so that it is whole again.

The entries of the intact copy are taken as they are. Its header gets the other one's place and a new checksum, so even
fields that this project does not know survive. Anything that a copy would overwrite outside of its own area makes it
unsafe to write it; then it is only reported.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import pack_into
from typing import Literal, NamedTuple

from erofs_edge.disk import gpt

ENTRY_MAX = 1024  # bytes

Holds = Callable[[int, bytes], bool]
"""holds(offset, data): whether the disk has exactly these bytes there"""


class Mend(NamedTuple):
    """What is damaged, and the (offset, bytes) that mend it: in this order, each durable before the next is written, so
    that a power cut always leaves one whole copy. Without `writes`, mending is not safe."""

    damaged: Literal["first", "second", "mbr"]
    writes: tuple[tuple[int, bytes], ...] = ()

    @property
    def region(self) -> str:
        """Which part of a disk it lies in, as parts are named where whole disks are written."""
        return "gpt backup" if self.damaged == "second" else "gpt"

    @property
    def start(self) -> int:
        """Offset of the first byte to write, apart from sector 0 if more than that is damaged."""
        return min((offset for offset, _ in self.writes if offset), default=0)

    @property
    def size(self) -> int:
        """Number of bytes to write."""
        return sum(len(data) for _, data in self.writes)


class _Header(NamedTuple):
    """A header sector, and what it says about places. `raw`: without what may follow the header in its sector, where
    zeros belong; `torn`: something else is there, such as the rest of an older sector. `span`: sectors of the entries.
    """

    raw: bytes
    torn: bool
    here: int
    other: int
    first_usable: int
    last_usable: int
    entries: int
    span: int

    def twin(self, entries: int) -> bytes:
        """The header of the other copy, whose entries start in this sector."""
        raw = bytearray(self.raw)
        pack_into("<QQ", raw, 24, self.other, self.here)
        pack_into("<Q", raw, 72, entries)
        size = gpt.HEADER.unpack_from(raw)[2]
        pack_into("<I", raw, 16, 0)
        pack_into("<I", raw, 16, zlib.crc32(raw[:size]))
        return bytes(raw)


def find_damage(table: gpt.Table, read: gpt.Read, holds: Holds | None = None, mbr: bytes = b"") -> Mend | None:
    """What is wrong with the copies of a table that was read from a disk; None if nothing is.

    A second copy that is valid but differs from the first is not damaged: the first counts, and the difference may be
    intended. `mbr`: sector 0 as it should be, apart from the size of the disk; without it, sector 0 is not looked at.
    """
    holds = holds or (lambda offset, data: read(offset, len(data)) == data)
    found = _first(table, read) if table.backup_used else _second(table, read, holds)
    sector_0 = _sector_0(table, read, mbr)
    if found is None:
        return Mend("mbr", sector_0) if sector_0 else None
    return found._replace(writes=found.writes + sector_0) if found.writes else found


def _first(table: gpt.Table, read: gpt.Read) -> Mend:
    """The first copy, made from the second one in the last sector."""
    sector, damaged = table.sector_size, Mend("first")
    if _sound(table, read, 1):
        return damaged  # whole, but for a larger disk or with partitions that overlap: somebody made it like that
    intact = _header(read, table.sectors - 1, sector)
    entries = _own_entries(read, 1, sector) or 2
    if intact.other != 1 or not 2 <= entries <= intact.first_usable - intact.span:
        return damaged
    return damaged._replace(writes=_writes(intact, entries, read, sector))


def _second(table: gpt.Table, read: gpt.Read, holds: Holds) -> Mend | None:
    """The second copy, made from the first one, where that one says it is: on a disk that is larger than the table, not
    in the last sector."""
    sector, damaged = table.sector_size, Mend("second")
    intact = _header(read, 1, sector)
    entries = intact.other - intact.span
    if not intact.last_usable < entries < table.sectors - intact.span:
        return damaged
    if holds(entries * sector, _entries(intact, read, sector) + intact.twin(entries)):
        return Mend("first", ((sector, intact.raw),)) if intact.torn else None
    if _sound(table, read, intact.other):
        own = _header(read, intact.other, sector)
        same = own.raw == intact.twin(own.entries) and _entries(own, read, sector) == _entries(intact, read, sector)
        return damaged._replace(writes=_writes(intact, own.entries, read, sector)) if same and own.torn else None
    if intact.other != table.sectors - 1 and _sound(table, read, table.sectors - 1):
        return damaged  # made by something that was about to enlarge the table, or older than the first copy
    entries = _own_entries(read, intact.other, sector) or entries
    if not intact.last_usable < entries <= intact.other - intact.span:
        return damaged
    return damaged._replace(writes=_writes(intact, entries, read, sector))


def _writes(intact: _Header, entries: int, read: gpt.Read, sector: int) -> tuple[tuple[int, bytes], ...]:
    """Entries, then the header, if they are not there already. A header without its entries would not be valid."""
    wanted = (
        (entries * sector, _entries(intact, read, sector)),
        (intact.other * sector, intact.twin(entries)),
    )
    return tuple((offset, data) for offset, data in wanted if read(offset, len(data)) != data)


def _header(read: gpt.Read, lba: int, sector: int) -> _Header:
    raw = read(lba * sector, sector)
    _, _, length, _, here, other, first, last, _, entries, count, size, _ = gpt.HEADER.unpack_from(raw)
    clean = raw[:length].ljust(sector, b"\0")
    return _Header(clean, clean != raw, here, other, first, last, entries, -(-count * size // sector))


def _entries(intact: _Header, read: gpt.Read, sector: int) -> bytes:
    return read(intact.entries * sector, intact.span * sector)


def _checked(read: gpt.Read, lba: int, sector: int) -> bytes:
    """The header in a sector if it has the right checksum and belongs there, otherwise b""."""
    raw = read(lba * sector, sector)
    if len(raw) < sector:
        return b""
    _, _, size, checksum, here, *_ = gpt.HEADER.unpack_from(raw)
    if (
        here != lba
        or not gpt.HEADER.size <= size <= sector
        or zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != checksum
    ):
        return b""
    return raw


def _own_entries(read: gpt.Read, lba: int, sector: int) -> int | None:
    """Where a copy says its entries are, if its header can be trusted: some boards have their boot loader where the
    entries usually are."""
    return gpt.HEADER.unpack_from(raw)[9] if (raw := _checked(read, lba, sector)) else None


def _sound(table: gpt.Table, read: gpt.Read, lba: int) -> bool:
    """Whether the checksums of the copy with this header are right, whatever is in it."""
    raw = _checked(read, lba, table.sector_size)
    if not raw:
        return False
    entries, count, size, checksum = gpt.HEADER.unpack_from(raw)[9:]
    if not (2 <= entries < table.sectors and 0 < count <= gpt.ENTRIES_MAX and 0 < size <= ENTRY_MAX):
        return False
    return bool(zlib.crc32(read(entries * table.sector_size, count * size)) == checksum)


def _sector_0(table: gpt.Table, read: gpt.Read, mbr: bytes) -> tuple[tuple[int, bytes], ...]:
    """Sector 0, if it should protect the table and does not. Whatever else is in a sector 0 that does is kept."""
    now = read(0, table.sector_size)
    if not _protects(mbr) or _protects(now):
        return ()
    starts = {partition.first_lba: partition.last_lba - partition.first_lba + 1 for partition in table.partitions}
    made = bytearray(mbr[:512])
    for at in gpt.MBR_ENTRIES:
        flags, chs, kind, chs_end, start, length = gpt.MBR_ENTRY.unpack_from(made, at)
        if kind == gpt.MBR_EFI_PROTECTIVE and starts.keys().isdisjoint({start + length}):
            sectors = table.sectors if table.backup_used else gpt.sectors_told(read, table)
            gpt.MBR_ENTRY.pack_into(made, at, flags, chs, kind, chs_end, start, min(sectors - 1, 0xFFFFFFFF))
        elif kind not in (0, gpt.MBR_EFI_PROTECTIVE) and starts.get(start) != length:
            return ()  # it lists a partition that the disk has elsewhere
    return ((0, bytes(made) + now[512:]),)


def _protects(mbr: bytes) -> bool:
    """Whether sector 0 tells programs that do not know GUID partition tables to keep off."""
    if mbr[510:512] != b"\x55\xaa":
        return False
    return any(gpt.MBR_ENTRY.unpack_from(mbr, at)[2] == gpt.MBR_EFI_PROTECTIVE for at in gpt.MBR_ENTRIES)
