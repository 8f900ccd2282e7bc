# SPDX-License-Identifier: Apache-2.0
"""The place for UEFI variables in a compiled U-Boot, which lets one compilation serve every key.

U-Boot only accepts variables at build time (CONFIG_EFI_VARIABLES_PRESEED, lib/efi_loader/efi_var_seed.S): a file that
its linker puts between its constants. Ours is as long as the available room, and valid: it has one variable, a PK
without a certificate. So a U-Boot whose place has not been filled has secure boot on and starts nothing.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from erofs_edge.errors import CapacityError, FormatError

NAME = "erofs-edge.var"
"""CONFIG_EFI_VAR_SEED_FILE in uefi.config, below the source"""
SIZE = 16 << 10
"""bytes of room, about half of which four RSA-4096 certificates take"""
_MAGIC = 0x0161566966456255
_PLATFORM = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""EFI_GLOBAL_VARIABLE, the vendor of PK"""
_ATTRIBUTES = 0x27
_TEXT = b"no certificate of erofs-edge's is in here yet. "


def blank() -> bytes:
    """The file that U-Boot is compiled with, `SIZE` bytes (include/efi_variable.h, struct efi_var_file)."""
    name = "PK\0".encode("utf-16-le")
    size = SIZE - 24 - 32 - len(name)
    entry = struct.pack("<IIQ16s", size, _ATTRIBUTES, 0, _PLATFORM) + name + (_TEXT * SIZE)[:size]
    return struct.pack("<QQII", 0, _MAGIC, SIZE, zlib.crc32(entry)) + entry


def put(source: Path) -> None:
    """Put the file in both places below U-Boot's source where it is looked for: by make, and by the assembler."""
    for folder in (source, source / "include"):
        (folder / NAME).write_bytes(blank())


def fill(program: bytes, variables: bytes) -> bytes:
    """The program with a file of variables (`boot/u_boot_vars.py`) in their place.

    Raises FormatError if the program has no blank place, CapacityError if the variables do not fit.
    """
    room = blank()
    if program.count(room) != 1:
        raise FormatError("this U-Boot has no blank place for UEFI variables")
    if len(variables) > SIZE:
        raise CapacityError(f"the variables take {len(variables)} bytes, {SIZE} fit", where="UEFI variables")
    return program.replace(room, variables.ljust(SIZE, b"\0"))
