# SPDX-License-Identifier: Apache-2.0
"""UEFI variables in U-Boot's formats: the file ubootefi.var, and the preset variables of a U-Boot with keys.

Source: U-Boot ``include/efi_variable.h`` (struct efi_var_file, struct efi_var_entry), ``lib/efi_loader/efi_var_file.c``
for how it is read: the length in the header counts, entries start at multiples of 8 bytes, the checksum covers
everything after the header. U-Boot's own ``tools/efivar.py`` writes the same.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence

from erofs_edge.boot.uefi_vars import SECURE_BOOT_ENABLE, TIME_BASED, Variable, secure_boot
from erofs_edge.errors import FormatError

MAGIC = 0x0161566966456255
"""'UbEfiVa', version 1, little endian"""
HEAD = struct.Struct("<QQII")
"""reserved, magic, length of the file, crc32"""
_ENTRY = struct.Struct("<IIQ16s")
"""length of the content, attributes, time in seconds since 1970, vendor; name and content follow"""
_ALIGN = 8


def encode(variables: Sequence[Variable], *, epoch: int) -> bytes:
    """Make the file. `epoch`: seconds since 1970, the time at which authenticated variables were signed."""
    body = bytearray()
    for variable in variables:
        moment = epoch if variable.attributes & TIME_BASED else 0
        body += _ENTRY.pack(len(variable.data), variable.attributes, moment, variable.vendor.bytes_le)
        body += variable.name.encode("utf-16-le") + b"\0\0" + variable.data
        body += bytes(-len(body) % _ALIGN)
    return HEAD.pack(0, MAGIC, HEAD.size + len(body), zlib.crc32(body)) + body


def decode(data: bytes) -> list[Variable]:
    """Read the variables of a file; anything after its stated length is ignored. Raises FormatError."""
    if len(data) < HEAD.size:
        raise FormatError("not a file of U-Boot's UEFI variables: too short")
    reserved, magic, length, checksum = HEAD.unpack_from(data)
    if reserved or magic != MAGIC or not HEAD.size <= length <= len(data):
        raise FormatError("not a file of U-Boot's UEFI variables", where="offset 0x0")
    if zlib.crc32(data[HEAD.size : length]) != checksum:
        raise FormatError("the checksum of the UEFI variables is wrong", where="offset 0x14")
    found, at = list[Variable](), HEAD.size
    while at < length:
        if at + _ENTRY.size > length:
            raise FormatError("a UEFI variable leaves the file", where=f"offset {at:#x}")
        size, attributes, _, vendor = _ENTRY.unpack_from(data, at)
        name, start = _name(data, at + _ENTRY.size, length)
        if start + size > length:
            raise FormatError("a UEFI variable leaves the file", where=f"offset {at:#x}")
        found.append(Variable(name, uuid.UUID(bytes_le=vendor), attributes, data[start : start + size]))
        at = start + size
        at += -at % _ALIGN
    return found


def preset(owner: uuid.UUID, platform: bytes, allowed: Sequence[bytes], *, epoch: int) -> bytes:
    """Make the file with PK, KEK and db with which U-Boot starts only what one of the `allowed` certificates (DER)
    signed.

    platform  certificate of the nominal owner of the keys; nobody can change them while U-Boot runs
    """
    keys = [one for one in secure_boot(owner, platform, allowed) if one.vendor != SECURE_BOOT_ENABLE]
    return encode(keys, epoch=epoch)


def _name(data: bytes, at: int, end: int) -> tuple[str, int]:
    """The name that starts there, and the position of its content."""
    for stop in range(at, end - 1, 2):
        if data[stop : stop + 2] == b"\0\0":
            return data[at:stop].decode("utf-16-le", "replace"), stop + 2
    raise FormatError("the name of a UEFI variable has no end", where=f"offset {at:#x}")
