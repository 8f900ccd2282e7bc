# SPDX-License-Identifier: Apache-2.0
"""The parts of a PE32+ file that signing and measuring need: header fields, sections, certificate table.

Source: Microsoft's "PE Format"; UEFI 2.10 section 2.1.1 (images), Microsoft's "Windows Authenticode Portable
Executable Signature Format" for what the digest leaves out. All offsets and sizes are bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from erofs_edge.errors import FormatError

SECTIONS_MAX = 96  # the limit in the PE specification
PE32_PLUS = 0x20B
ARM64 = 0xAA64
_COFF = 24  # signature and COFF header
_SECTION = struct.Struct("<8s4I12xI")
SECTION_SIZE = 40
# in the optional header of PE32+
_ALIGNMENTS, _SIZE_OF_IMAGE, _SIZE_OF_HEADERS, _CHECKSUM, _DIRECTORIES = 32, 56, 60, 64, 108
_CERTIFICATES = 4
"""index of the certificate table among the data directories"""


@dataclass(frozen=True, slots=True)
class Section:
    """`size` bytes at `address` in memory, `stored` of them at `offset` in the file, the rest zero."""

    name: str
    size: int
    address: int
    stored: int
    offset: int
    flags: int


@dataclass(frozen=True, slots=True)
class Image:
    """Where the parts of a PE32+ file are.

    coff, optional     offsets of COFF header and optional header
    table              offset of the first section header
    headers            bytes of all headers, as stated in the file
    certificates       (offset, size) of the certificate table; (0, 0) if there is none
    """

    machine: int
    coff: int
    optional: int
    table: int
    headers: int
    section_alignment: int
    file_alignment: int
    sections: tuple[Section, ...]
    certificates: tuple[int, int]

    @property
    def checksum(self) -> int:
        """Offset of the file's checksum, 4 bytes."""
        return self.optional + _CHECKSUM

    @property
    def size_of_image(self) -> int:
        """Offset of the 4-byte field with the size in memory."""
        return self.optional + _SIZE_OF_IMAGE

    @property
    def directory(self) -> int:
        """Offset of the directory entry of the certificate table, 8 bytes."""
        return self.optional + _DIRECTORIES + 4 + 8 * _CERTIFICATES

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def parse(data: bytes | memoryview) -> Image:
    """The layout of a PE32+ file. Raises FormatError on anything else, and if a part lies outside the file."""
    coff = struct.unpack_from("<I", data, 0x3C)[0] if len(data) >= 0x40 and bytes(data[:2]) == b"MZ" else 0
    if not coff or bytes(data[coff : coff + 4]) != b"PE\0\0" or len(data) < coff + _COFF:
        raise FormatError("not a PE file", where="offset 0x0")
    machine, count, optional_size = struct.unpack_from("<HH12xH", data, coff + 4)
    optional = coff + _COFF
    table = optional + optional_size
    smallest = _DIRECTORIES + 4 + 8 * (_CERTIFICATES + 1)
    if optional_size < smallest or table > len(data) or struct.unpack_from("<H", data, optional)[0] != PE32_PLUS:
        raise FormatError("not a PE32+ file with a certificate table", where=f"offset {optional:#x}")
    (directories,) = struct.unpack_from("<I", data, optional + _DIRECTORIES)
    headers = struct.unpack_from("<I", data, optional + _SIZE_OF_HEADERS)[0]
    if count > SECTIONS_MAX or table + SECTION_SIZE * count > min(headers, len(data)) or headers > len(data):
        raise FormatError(f"a PE file with {count} sections", where=f"offset {coff + 6:#x}")
    if directories <= _CERTIFICATES:
        raise FormatError("a PE file without room for a certificate table", where=f"offset {optional:#x}")
    section_alignment, file_alignment = struct.unpack_from("<II", data, optional + _ALIGNMENTS)
    for alignment in (section_alignment, file_alignment):
        if not alignment or alignment & (alignment - 1) or alignment > 1 << 20:
            raise FormatError(f"a PE alignment of {alignment}", where=f"offset {optional + _ALIGNMENTS:#x}")
    certificates = struct.unpack_from("<II", data, optional + _DIRECTORIES + 4 + 8 * _CERTIFICATES)
    if certificates != (0, 0) and (certificates[0] < headers or sum(certificates) != len(data)):
        raise FormatError("the certificate table is not at the end of the file", where=f"offset {certificates[0]:#x}")
    sections = tuple(_section(data, table + SECTION_SIZE * number) for number in range(count))
    return Image(
        machine, coff, optional, table, headers, section_alignment, file_alignment, sections, certificates
    )  # fmt: skip


def section_content(data: bytes, section: Section) -> bytes:
    """The bytes of a section as in memory. Raises FormatError for one that is mostly not in the file."""
    if section.size > section.stored + (1 << 20):
        raise FormatError(f"section {section.name} is mostly not there", where=f"offset {section.offset:#x}")
    return data[section.offset : section.offset + min(section.size, section.stored)].ljust(section.size, b"\0")


def checksum(data: bytes, at: int) -> int:
    """The checksum of a PE file whose checksum field is at byte `at`: 16-bit words added with end-around carry, plus
    the size.

    The field itself counts as zero.
    """
    # addition with end-around carry is arithmetic modulo 0xffff, and dividing one large number is fast
    total = int.from_bytes(data[:at] + bytes(4) + data[at + 4 :], "little")
    return (total % 0xFFFF or (0xFFFF if total else 0)) + len(data)


def _section(data: bytes | memoryview, at: int) -> Section:
    raw, size, address, stored, offset, flags = _SECTION.unpack_from(data, at)
    name = raw.rstrip(b"\0").decode("ascii", "replace")
    if stored and offset + stored > len(data):
        raise FormatError(f"section {name} leaves the file", where=f"offset {at:#x}")
    return Section(name, size, address, stored, offset, flags)
