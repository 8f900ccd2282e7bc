# SPDX-License-Identifier: Apache-2.0
"""What a TPM will hold after a unified kernel image has booted: reference values for attestation.

Source: systemd ``src/boot/efi/stub.c`` and ``src/boot/measure.c``: PCR 11 is extended with the name (NUL included) and
the content of each known section, in a fixed order, and later with a word for each phase of the boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from erofs_edge.trust import pe

SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey")
"""in the order in which systemd-stub measures them"""
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")


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
    found: dict[str, bytes] = {}
    for section in pe.parse(image).sections:
        if section.name in SECTIONS and section.name not in found:
            found[section.name] = pe.section_content(image, section)
    return found


def _extend(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
