# SPDX-License-Identifier: Apache-2.0
"""Read from ELF files (64-bit, little-endian; System V gABI chapters 4 and 5) the libraries that a program loads and
the ``.modinfo`` of a kernel module. Input may be hostile: every offset is checked and work is bounded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from erofs_edge.errors import FormatError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
SHT_NOBITS = 8
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ = 0, 1, 5, 10
MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What a dynamic program requires: the loader's path ('' in a library) and the sonames of its libraries."""

    interpreter: str
    needed: list[str]


def is_elf(data: bytes) -> bool:
    """Whether a file starts like a 64-bit little-endian ELF file."""
    return data[:6] == b"\x7fELF\x02\x01"


def modinfo(data: bytes) -> list[tuple[str, str]]:
    """(key, value) pairs of a module's .modinfo section, in order. Raises FormatError."""
    section = _section(data, ".modinfo")
    if section is None:
        raise FormatError("kernel module without .modinfo")
    fields = (entry.partition("=") for entry in section.decode("latin-1").split("\0") if entry)
    return [(key, value) for key, _, value in fields]


def dynamic(data: bytes) -> Dynamic:
    """Read interpreter and needed libraries; both are empty for a static program. Raises FormatError."""
    header = _header(data)
    loads: list[tuple[int, int, int]] = []
    interpreter, table = "", b""
    for kind, _, offset, address, _, size, _, _ in _table(data, _PROGRAM, header[5], header[9], header[10]):
        if kind == PT_LOAD:
            loads.append((address, size, offset))
        elif kind == PT_INTERP:
            interpreter = _slice(data, offset, size).rstrip(b"\0").decode("latin-1")
        elif kind == PT_DYNAMIC:
            table = _slice(data, offset, size)
    names: list[int] = []
    strings_at = strings_size = 0
    for position in range(0, len(table) - _DYNAMIC.size + 1, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(table, position)
        if tag == DT_NULL:
            break
        if tag == DT_NEEDED:
            names.append(value)
        elif tag == DT_STRTAB:
            strings_at = value
        elif tag == DT_STRSZ:
            strings_size = value
    strings = _slice(data, _file_offset(loads, strings_at), strings_size) if names else b""
    return Dynamic(interpreter, [_string(strings, name) for name in names[:MAX_ENTRIES]])


def sections(data: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of every section, in order; sections without bytes in the file (.bss) are empty. Raises
    FormatError.
    """
    header = _header(data)
    table = _table(data, _SECTION, header[6], header[11], header[12])
    if not table:
        return []
    if header[13] >= len(table):
        raise FormatError("ELF file has no section names")
    names = _slice(data, table[header[13]][4], table[header[13]][5])
    return [
        (_string(names, section[0]), b"" if section[1] == SHT_NOBITS else _slice(data, section[4], section[5]))
        for section in table
    ]


def _section(data: bytes, wanted: str) -> bytes | None:
    header = _header(data)
    sections = _table(data, _SECTION, header[6], header[11], header[12])
    if header[13] >= len(sections):
        raise FormatError("ELF file has no section names")
    names = _slice(data, sections[header[13]][4], sections[header[13]][5])
    for section in sections:
        if section[0] < len(names) and _string(names, section[0]) == wanted:
            return _slice(data, section[4], section[5])
    return None


def _header(data: bytes) -> tuple[int, ...]:
    if not is_elf(data) or len(data) < _HEADER.size:
        raise FormatError("not a 64-bit little-endian ELF file", where="offset 0x0")
    return _HEADER.unpack_from(data)


def _table(data: bytes, entry: struct.Struct, offset: int, size: int, count: int) -> list[tuple[int, ...]]:
    if not count:
        return []
    if size < entry.size or count > MAX_ENTRIES:
        raise FormatError("bad ELF header table", where=f"offset {offset:#x}")
    raw = _slice(data, offset, size * count)
    return [entry.unpack_from(raw, index * size) for index in range(count)]


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise FormatError("ELF file is cut short", where=f"offset {offset:#x}")
    return data[offset : offset + size]


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset >= len(table) or end < 0:
        raise FormatError("bad ELF string")
    return table[offset:end].decode("latin-1")


def _file_offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for start, size, offset in loads:
        if start <= address < start + size:
            return offset + address - start
    raise FormatError(f"ELF address {address:#x} is in no segment")
