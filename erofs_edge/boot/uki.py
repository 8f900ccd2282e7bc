# SPDX-License-Identifier: Apache-2.0
"""Unified kernel images: systemd's stub with kernel, initramfs and arguments as further sections of one PE file.

Verifying the file verifies all of them. Sources: the UAPI group's "Unified Kernel Image" for the sections; Microsoft's
"PE Format" for the file; systemd ``src/boot/stub.c`` for what the stub does with them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from erofs_edge.errors import FormatError
from erofs_edge.trust import pe

INITIALIZED_DATA, READABLE = 0x40, 0x40000000
_SIZE_OF_DATA = 8
"""offset, in the optional header, of the bytes of initialized data"""


def build_uki(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Append sections ('.linux', '.initrd', …) to the stub's own, in the order given; checksum zero, not signed.

    Raises FormatError if the stub is not a suitable PE file, already has one of the sections, or has no room for their
    headers.
    """
    image = pe.parse(stub)
    if image.machine != pe.ARM64:
        raise FormatError(f"the stub is for another machine: {image.machine:#x}", where=f"offset {image.coff + 4:#x}")
    end = image.table + pe.SECTION_SIZE * (len(image.sections) + len(sections))
    if end > min(image.headers, *(section.offset for section in image.sections if section.stored)):
        raise FormatError("the stub has no room for more sections", where=f"offset {image.table:#x}")
    if image.certificates[1]:
        raise FormatError("the stub is signed: sections cannot be added", where=f"offset {image.certificates[0]:#x}")
    done = bytearray(stub + bytes(-len(stub) % image.file_alignment))
    address = max(section.address + section.size for section in image.sections)
    for number, (name, data) in enumerate(sections.items()):
        if image.section(name) is not None or len(name) > 8:
            raise FormatError(f"the stub has a section {name}, or it cannot be named so")
        address = _aligned(address, image.section_alignment)
        stored = _aligned(len(data), image.file_alignment)
        header = struct.pack(
            "<8s4I12xI", name.encode("ascii"), len(data), address, stored, len(done), INITIALIZED_DATA | READABLE
        )
        at = image.table + pe.SECTION_SIZE * (len(image.sections) + number)
        done[at : at + pe.SECTION_SIZE] = header
        done += data + bytes(stored - len(data))
        address += len(data)
    added = sum(_aligned(len(data), image.file_alignment) for data in sections.values())
    (initialized,) = struct.unpack_from("<I", stub, image.optional + _SIZE_OF_DATA)
    struct.pack_into("<H", done, image.coff + 6, len(image.sections) + len(sections))
    struct.pack_into("<I", done, image.optional + _SIZE_OF_DATA, initialized + added)
    struct.pack_into("<I", done, image.size_of_image, _aligned(address, image.section_alignment))
    struct.pack_into("<I", done, image.checksum, 0)
    return bytes(done)


def _aligned(value: int, unit: int) -> int:
    return -(-value // unit) * unit
