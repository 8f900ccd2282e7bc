# SPDX-License-Identifier: Apache-2.0
"""What a TPM contains after a unified kernel image has booted: reference values for attestation.

PCR 4: the programs that were started; PCR 7: the keys with which firmware checks them; PCR 11: the parts of the image.

Source: systemd ``src/boot/efi/stub.c`` and ``src/boot/measure.c``: PCR 11 is extended with the name (NUL included) and
the content of each known section, in a fixed order, and later with a word for each phase of the boot.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence

from erofs_edge.trust import pe

SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey")
"""in the order in which systemd-stub measures them"""
BOOT_OPTION, SEPARATOR = b"Calling EFI Application from Boot Option", bytes(4)
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
LIST_HEADER = 28
"""bytes of an EFI_SIGNATURE_LIST before its entry"""
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")


def expected_pcr11(sections: Mapping[str, bytes]) -> dict[str, str]:
    """Phase path ('enter-initrd:leave-initrd') → PCR 11 in hex, SHA-256 bank, as ``systemd-measure calculate`` prints
    it.

    The key '' stands for the value after the stub itself.
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


def expected_pcr4(images: Sequence[bytes]) -> str:
    """PCR 4 in hex, SHA-256 bank, after firmware's first boot option has started these programs, each one starting the
    next.

    images  their Authenticode digests in that order: boot loader, kernel image

    Source: TCG PC Client Platform Firmware Profile 1.06 section 3.3.4.5; as EDK2 measures it.
    """
    value = _extend(_extend(bytes(32), BOOT_OPTION), SEPARATOR)
    for digest in images:
        value = hashlib.sha256(value + digest).digest()
    return value.hex()


def expected_pcr4_direct(image: bytes) -> str:
    """PCR 4 in hex, SHA-256 bank, if QEMU passes this one program to firmware as its kernel (`-kernel`).

    image  its Authenticode digest

    Source: EDK2 ``TryRunningQemuKernel``: the image is loaded, and so measured, before firmware announces that it is
    ready to boot, when the other two events are measured; seen with AAVMF 2025.02.
    """
    return _extend(_extend(hashlib.sha256(bytes(32) + image).digest(), BOOT_OPTION), SEPARATOR).hex()


def expected_pcr7(keys: Mapping[str, bytes]) -> str:
    """PCR 7 in hex, SHA-256 bank, if secure boot is on and one certificate has verified everything that was started.

    keys  the contents of the variables PK, KEK and db; db has one certificate, dbx does not exist

    Source: TCG PC Client Platform Firmware Profile 1.06 section 3.3.4.8 (what is measured), 10.4.1 (in which form).
    """
    value = _extend(bytes(32), _variable(GLOBAL, "SecureBoot", b"\x01"))
    for vendor, name in ((GLOBAL, "PK"), (GLOBAL, "KEK"), (IMAGE_SECURITY, "db"), (IMAGE_SECURITY, "dbx")):
        value = _extend(value, _variable(vendor, name, keys.get(name, b"")))
    value = _extend(value, SEPARATOR)
    # the certificate that was used: the entry without the header of its list
    return _extend(value, _variable(IMAGE_SECURITY, "db", keys["db"][LIST_HEADER:])).hex()


def _variable(vendor: uuid.UUID, name: str, data: bytes) -> bytes:
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def uki_sections(image: bytes) -> dict[str, bytes]:
    """The sections of a unified kernel image that are measured. Raises FormatError unless it is a PE file."""
    found: dict[str, bytes] = {}
    for section in pe.parse(image).sections:
        if section.name in SECTIONS and section.name not in found:
            found[section.name] = pe.section_content(image, section)
    return found


def _extend(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
