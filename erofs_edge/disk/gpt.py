# SPDX-License-Identifier: Apache-2.0
"""GUID partition tables: encode and decode. No clock, no random numbers.

Source: UEFI specification 2.10, chapter 5 (protective MBR 5.2.3, header 5.3.2, entries 5.3.3). Type GUIDs are those of
the Discoverable Partitions Specification (UAPI group) where it has one.
"""

from __future__ import annotations

import itertools
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import NamedTuple

from erofs_edge.errors import FormatError

ALIGNMENT = 1 << 20  # bytes; alignment of the start and end of each partition
SECTOR_SIZES = (512, 4096)
ENTRIES = 128
ENTRY_SIZE = 128
ENTRIES_MAX = 1024  # when reading: bounds the memory that a hostile header can demand
NAME_UNITS = 36  # UTF-16 code units

TYPE_ROOT_ARM64 = uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
TYPE_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
TYPE_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ATTRIBUTE_READ_ONLY = 1 << 60  # Discoverable Partitions Specification

MBR_EFI_PROTECTIVE = 0xEE
MBR_FAT32_LBA = 0x0C

_SIGNATURE = b"EFI PART"
SECTORS_MAX = 1 << 40
"""of a disk whose size does not matter"""
HEADER = Struct("<8sIII4xQQQQ16sQIII")
"""signature, revision, header size, header CRC, my LBA, other LBA, first and last usable LBA, disk GUID, entries' LBA,
count and size of entries, CRC of the entries"""
_ENTRY = Struct("<16s16sQQQ72s")
MBR_ENTRY = Struct("<B3sB3sII")
"""flags, first CHS, type, last CHS, first LBA, sectors"""
MBR_ENTRIES = range(446, 510, MBR_ENTRY.size)
"""their offsets in sector 0"""

Read = Callable[[int, int], bytes]
"""read(offset, length) in bytes; shorter at the end of the disk"""


class Partition(NamedTuple):
    """One entry. LBAs count sectors; `last_lba` is inclusive."""

    name: str
    type_guid: uuid.UUID
    guid: uuid.UUID
    first_lba: int
    last_lba: int
    attributes: int = 0


class Table(NamedTuple):
    """A whole table; `sectors` is the size of the disk. `hybrid` is the index of the partition that the MBR lists as
    well. `backup_used`: it was read from the backup at the end because the primary is damaged."""

    disk_guid: uuid.UUID
    sectors: int
    partitions: tuple[Partition, ...]
    sector_size: int = 512
    hybrid: int | None = None
    backup_used: bool = False

    def places(self) -> dict[str, tuple[int, int]]:
        """Name → (start, end) of each partition, in bytes."""
        size = self.sector_size
        return {p.name: (p.first_lba * size, (p.last_lba + 1) * size) for p in self.partitions}

    @property
    def entry_sectors(self) -> int:
        """Sectors of the entry array."""
        return ENTRIES * ENTRY_SIZE // self.sector_size

    @property
    def first_usable(self) -> int:
        return 2 + self.entry_sectors

    @property
    def last_usable(self) -> int:
        return self.sectors - 2 - self.entry_sectors


def guid_from(seed: bytes, name: str) -> uuid.UUID:
    """A GUID (RFC 9562 version 8) that depends only on `seed` and `name`."""
    from hashlib import sha256  # reading tables does not need OpenSSL

    from erofs_edge.uuids import uuid8

    return uuid.UUID(bytes=uuid8(sha256(b"erofs-edge gpt\0" + seed + b"\0" + name.encode()).digest()))


def encode(table: Table) -> tuple[bytes, bytes]:
    """(head, tail): MBR, header and entries for the first sectors; entries and backup header for the last ones.

    Raises FormatError if the partitions violate the table's rules.
    """
    _check(table)
    if len(table.partitions) > ENTRIES:
        raise FormatError(f"{len(table.partitions)} partitions, a table holds {ENTRIES}")
    entries = b"".join(map(_pack_entry, table.partitions)).ljust(ENTRIES * ENTRY_SIZE, b"\0")
    last = table.sectors - 1
    primary = _pack_header(table, 1, last, 2, zlib.crc32(entries))
    backup = _pack_header(table, last, 1, last - table.entry_sectors, zlib.crc32(entries))
    return _pack_mbr(table) + primary + entries, entries + backup


def decode(read: Read, size: int, sector_size: int) -> Table:
    """The table of a disk of `size` bytes, from the backup if the primary is damaged.

    Raises FormatError, with the offset, if neither can be used. Reads at most two headers and entry arrays.
    """
    sectors = size // sector_size
    try:
        return decode_at(read, 1, sectors, sector_size)
    except FormatError as primary:
        try:
            return decode_at(read, sectors - 1, sectors, sector_size)
        except FormatError:
            raise primary from None


def decode_at(read: Read, lba: int, sectors: int, sector_size: int) -> Table:
    """The table whose header is in sector `lba` of a disk of `sectors` sectors. Raises FormatError."""
    at = lba * sector_size

    def broken(message: str, offset: int = at) -> FormatError:
        return FormatError(message, where=f"offset {offset:#x}")

    if lba < 1 or sectors < 6:
        raise broken("too small for a GUID partition table", 0)
    raw = read(at, sector_size)
    if len(raw) < sector_size or raw[:8] != _SIGNATURE:
        raise broken("no GUID partition table here")
    (_, revision, size, crc, my_lba, _, first, last, disk_guid, entries_lba, count, entry_size, entries_crc) = (
        HEADER.unpack_from(raw)
    )
    if revision >> 16 != 1 or not HEADER.size <= size <= sector_size:
        raise broken(f"unknown GPT revision {revision:#x} or header size {size}")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != crc:
        raise broken("the checksum of the GPT header does not match")
    if my_lba != lba or not first <= last < sectors:
        raise broken("the GPT header is for another place or another disk size")
    if entry_size not in (128, 256, 512, 1024) or not 0 < count <= ENTRIES_MAX:
        raise broken(f"{count} entries of {entry_size} bytes: not a sane partition table")
    at_entries = entries_lba * sector_size
    entries = read(at_entries, count * entry_size) if 2 <= entries_lba < sectors else b""
    if len(entries) != count * entry_size or zlib.crc32(entries) != entries_crc:
        raise broken("the checksum of the GPT entries does not match", at_entries)
    partitions = []
    for index in range(count):
        type_guid, guid, first_lba, last_lba, attributes, name = _ENTRY.unpack_from(entries, index * entry_size)
        if any(type_guid):
            partitions.append(
                Partition(
                    name.decode("utf-16-le", "replace").partition("\0")[0],
                    uuid.UUID(bytes_le=type_guid),
                    uuid.UUID(bytes_le=guid),
                    first_lba,
                    last_lba,
                    attributes,
                )
            )
            if not first <= first_lba <= last_lba <= last:
                raise broken(f"partition {index + 1} lies outside the disk", at_entries + index * entry_size)
    table = Table(
        uuid.UUID(bytes_le=disk_guid), sectors, tuple(partitions), sector_size,
        hybrid=_hybrid(read(0, 512), partitions), backup_used=lba != 1,
    )  # fmt: skip
    _check_overlaps(table, f"offset {at_entries:#x}")
    return table


def sectors_told(read: Read, table: Table) -> int:
    """Sectors of the disk that the table was made for, according to its first header: fewer than `table.sectors` if an
    image was written to a larger disk. Never more than that."""
    raw = read(table.sector_size, HEADER.size)
    return min(HEADER.unpack(raw)[5] + 1, table.sectors) if len(raw) == HEADER.size else table.sectors


def at_end(read: Read, table: Table) -> bool:
    """Whether the last sector of the disk looks like a table header."""
    return read((table.sectors - 1) * table.sector_size, len(_SIGNATURE)) == _SIGNATURE


def find(read: Read, size: int) -> Table | None:
    """The table of a disk of `size` bytes, of either sector size; None if neither copy exists. Raises FormatError for a
    damaged one."""
    damaged: FormatError | None = None
    for sector in SECTOR_SIZES:
        try:
            return decode(read, size, sector)
        except FormatError as error:
            if "no GUID" not in error.message and "too small" not in error.message:
                damaged = damaged or error
    if damaged is not None:
        raise damaged
    return None


def needed(read: Read) -> int | None:
    """Bytes up to the end of the last partition of a primary table, whatever the size of the disk; None without a
    valid table."""
    for sector_size in SECTOR_SIZES:
        with suppress(FormatError):
            table = decode_at(read, 1, SECTORS_MAX, sector_size)
            return max((partition.last_lba + 1 for partition in table.partitions), default=0) * sector_size
    return None


def _pack_entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le")
    if len(name) > 2 * NAME_UNITS:
        raise FormatError(f"partition name {partition.name!r} is longer than {NAME_UNITS} characters")
    return _ENTRY.pack(
        partition.type_guid.bytes_le,
        partition.guid.bytes_le,
        partition.first_lba,
        partition.last_lba,
        partition.attributes,
        name,
    )


def _pack_header(table: Table, lba: int, other: int, entries_lba: int, entries_crc: int) -> bytes:
    def packed(crc: int) -> bytes:
        return HEADER.pack(
            _SIGNATURE, 0x10000, HEADER.size, crc, lba, other, table.first_usable, table.last_usable,
            table.disk_guid.bytes_le, entries_lba, ENTRIES, ENTRY_SIZE, entries_crc,
        )  # fmt: skip

    return packed(zlib.crc32(packed(0))).ljust(table.sector_size, b"\0")


def _pack_mbr(table: Table) -> bytes:
    """Protective MBR: one entry for the whole disk. Hybrid: the named partition first, then the space before it."""
    covered = min(table.sectors - 1, 0xFFFFFFFF)
    entries = []
    if table.hybrid is not None:
        listed = table.partitions[table.hybrid]
        covered = listed.first_lba - 1
        length = listed.last_lba - listed.first_lba + 1
        if listed.first_lba + length > 1 << 32:
            raise FormatError(f"partition {listed.name!r} lies too far back for an MBR")
        entries.append(MBR_ENTRY.pack(0, b"\xfe\xff\xff", MBR_FAT32_LBA, b"\xfe\xff\xff", listed.first_lba, length))
    entries.append(MBR_ENTRY.pack(0, b"\x00\x02\x00", MBR_EFI_PROTECTIVE, b"\xff\xff\xff", 1, covered))
    mbr = bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"
    return mbr.ljust(table.sector_size, b"\0")


def _hybrid(mbr: bytes, partitions: list[Partition]) -> int | None:
    """Index of the partition that the MBR lists besides the protective entry."""
    if mbr[510:512] != b"\x55\xaa":
        return None
    for at in MBR_ENTRIES:
        _, _, kind, _, start, _ = MBR_ENTRY.unpack_from(mbr, at)
        if kind not in (0, MBR_EFI_PROTECTIVE):
            return next((i for i, p in enumerate(partitions) if p.first_lba == start), None)
    return None


def _check(table: Table) -> None:
    if table.sectors < table.first_usable + 1 + table.entry_sectors + 1:
        raise FormatError(f"a disk of {table.sectors} sectors has no room for a partition table")
    for p in table.partitions:
        if not table.first_usable <= p.first_lba <= p.last_lba <= table.last_usable:
            raise FormatError(f"partition {p.name!r} lies outside the disk")
    _check_overlaps(table, None)


def _check_overlaps(table: Table, where: str | None) -> None:
    ordered = sorted(table.partitions, key=lambda p: p.first_lba)
    for before, after in itertools.pairwise(ordered):
        if after.first_lba <= before.last_lba:
            raise FormatError(f"partitions {before.name!r} and {after.name!r} overlap", where=where)
