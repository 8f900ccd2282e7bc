# SPDX-License-Identifier: Apache-2.0
"""PE32+ files of a few sections, for tests that need no real program."""

from __future__ import annotations

import struct

ALIGNMENT = 512
HEADERS = 1024


def pe_file(sections: dict[str, bytes], *, machine: int = 0xAA64) -> bytes:
    """A PE32+ file with these sections and nothing that could run."""
    head = bytearray(HEADERS)
    head[:2], head[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
    optional_size = 112 + 8 * 16
    head[0x40:0x58] = b"PE\0\0" + struct.pack("<HH12xHH", machine, len(sections), optional_size, 0x22)
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<IIII", optional, 20, 0, 0, 0, 0)
    struct.pack_into("<II", optional, 32, 4096, ALIGNMENT)
    struct.pack_into("<III", optional, 56, 4096 * (2 + len(sections)), HEADERS, 0)
    struct.pack_into("<I", optional, 108, 16)
    head[0x58 : 0x58 + optional_size] = optional
    table, body, address = 0x58 + optional_size, b"", 4096
    for number, (name, data) in enumerate(sections.items()):
        stored = data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b"\0")
        fields = (name.encode(), len(data), address, len(stored), HEADERS + len(body), 0x40000040)
        head[table + 40 * number : table + 40 * (number + 1)] = struct.pack("<8s4I12xI", *fields)
        body += stored
        address += -(-max(len(data), 1) // 4096) * 4096
    return bytes(head) + body
