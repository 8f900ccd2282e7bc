# SPDX-License-Identifier: Apache-2.0
"""Read what our FITs contain: the values that the initramfs boots with, for checks from outside."""

from __future__ import annotations

import re
import struct

from erofs_edge.boot.cpio import read_cpio
from erofs_edge.boot.fdt import Node, parse
from erofs_edge.errors import FormatError

LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_BLOCK = 8 << 20
ARCHIVE_MAX = 512 << 20
"""largest unpacked size of an initramfs, in bytes"""
_ASSIGNMENT = re.compile(r"([A-Z_]+)='([^']*)'")


def init_values(fit: bytes | Node) -> dict[str, str]:
    """The shell assignments of /config (ROOT_HASH, SALT, …) in the initramfs of a FIT, or of its root. Raises
    FormatError.

    Verify the FIT first: only the form is checked here.
    """
    node = (fit if isinstance(fit, Node) else parse(fit).root).at("/images/ramdisk")
    if node is None or "data" not in node.props:
        raise FormatError("the FIT has no initramfs", where="/images/ramdisk")
    return init_values_of(node.props["data"])


def init_values_of(initramfs: bytes) -> dict[str, str]:
    """As `init_values`, of the initramfs itself."""
    for member in read_cpio(unpack_initramfs(initramfs)):
        if member.name == b"config":
            return _values(member.data.decode("utf-8", "replace"))
    raise FormatError("the initramfs has no config", where="/images/ramdisk")


def _values(text: str) -> dict[str, str]:
    values = {}
    for line in text.splitlines():
        found = _ASSIGNMENT.fullmatch(line)
        if found is None or found[1] in values:
            raise FormatError(f"the initramfs' config has the line {line[:80]!r}", where="/images/ramdisk")
        values[found[1]] = found[2]
    return values


def unpack_initramfs(packed: bytes) -> bytes:
    """Unpack the archive from LZ4's legacy frame, as made by `initramfs.compress`. Raises FormatError."""
    import lz4.block

    if len(packed) < 4 or struct.unpack_from("<I", packed)[0] != LZ4_LEGACY_MAGIC:
        raise FormatError("the initramfs is not in LZ4's legacy frame", where="/images/ramdisk")
    pieces, position, size = [], 4, 0
    while position + 4 <= len(packed) and size <= ARCHIVE_MAX:
        (length,) = struct.unpack_from("<I", packed, position)
        if not length and not any(packed[position:]):
            break  # zero padding
        block = packed[position + 4 : position + 4 + length]
        try:
            pieces.append(lz4.block.decompress(block, uncompressed_size=LZ4_LEGACY_BLOCK))
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise FormatError("the initramfs is damaged", where=f"offset {position:#x} of /images/ramdisk") from error
        size += len(pieces[-1])
        position += 4 + length
    if size > ARCHIVE_MAX:
        raise FormatError(f"the initramfs unpacks to more than {ARCHIVE_MAX} bytes", where="/images/ramdisk")
    return b"".join(pieces)
