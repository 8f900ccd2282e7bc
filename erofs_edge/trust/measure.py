# SPDX-License-Identifier: Apache-2.0
"""What a TPM will hold after a unified kernel image has booted: reference values for attestation.

Source: systemd ``src/boot/efi/stub.c`` and ``src/boot/measure.c``: PCR 11 is extended with the name (NUL included) and
the content of each known section, in a fixed order, and later with a word for each phase of the boot.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from erofs_edge.errors import FormatError

SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey")
"""in the order in which systemd-stub measures them"""
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
SECTIONS_MAX = 96  # as the PE specification has it


def expected_pcr11(sections: Mapping[str, bytes]) -> dict[str, str]:
    """Phase path ('enter-initrd:leave-initrd') → PCR 11 in hex, SHA-256 bank, as ``systemd-measure calculate`` has it.

    The key '' stands for the value that the stub itself leaves.
    """
    value = bytes(32)
    for name in SECTIONS:
        if name in sections:
            value = _extend(_extend(value, name.encode() + b"\0"), sections[name])
    found, path = {"": value.hex()}, ""
    for phase in PHASES:
        value = _extend(value, phase.encode())
        path = f"{path}:{phase}" if path else phase
        found[path] = value.hex()
    return found


def uki_sections(image: bytes) -> dict[str, bytes]:
    """The sections of a unified kernel image that are measured. Raises FormatError on anything but a PE file."""
    start = struct.unpack_from("<I", image, 0x3C)[0] if len(image) >= 0x40 and image[:2] == b"MZ" else 0
    if not start or image[start : start + 4] != b"PE\0\0" or len(image) < start + 24:
        raise FormatError("not a PE file", where="offset 0x0")
    count, optional = struct.unpack_from("<H12xH", image, start + 6)
    table = start + 24 + optional
    if count > SECTIONS_MAX or table + 40 * count > len(image):
        raise FormatError(f"a PE file with {count} sections", where=f"offset {start + 6:#x}")
    found: dict[str, bytes] = {}
    for number in range(count):
        raw_name, size, _, stored, offset = struct.unpack_from("<8s4I", image, table + 40 * number)
        name = raw_name.rstrip(b"\0").decode("ascii", "replace")
        if name not in SECTIONS or name in found:
            continue
        if offset + min(size, stored) > len(image):
            raise FormatError(f"section {name} leaves the file", where=f"offset {table + 40 * number:#x}")
        if size > stored + (1 << 20):
            raise FormatError(f"section {name} is mostly not there", where=f"offset {table + 40 * number:#x}")
        found[name] = image[offset : offset + min(size, stored)].ljust(size, b"\0")
    return found


def _extend(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
