# SPDX-License-Identifier: Apache-2.0
"""vbmeta partitions, as the initramfs checks them: the expected values of each, and the script for the check.

The initramfs is part of a signed FIT or kernel image, so its contents are as trustworthy as the key. It cannot contain
the digest of a vbmeta that describes the boot image it is part of, so it checks the signature instead: the kernel does,
with KEYCTL_PKEY_VERIFY (keyctl(2)), by a key that it only accepts as an X.509 certificate.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "usr/bin/keyctl"
APPLETS = ("sha256sum",)


@dataclass(frozen=True, slots=True)
class Expected:
    """One partition.

    name            of the partition, without its slot
    slotted         whether there is one per slot
    header          the first 256 bytes, all of which are known before the boot image is
    authentication, auxiliary, signature  sizes in bytes of both blocks and of the signature
    described       the first descriptors, as far as they are known; b"" for none
    """

    name: str
    slotted: bool
    header: bytes
    authentication: int
    auxiliary: int
    signature: int
    described: bytes


@dataclass(frozen=True, slots=True)
class Vbmeta:
    """All vbmeta partitions of a board; `certificate`: the signer's, DER."""

    certificate: bytes
    partitions: tuple[Expected, ...]

    def files(self) -> dict[str, bytes]:
        """Name in the initramfs → content. The init script reads 'vbmeta', which checks all of them."""
        calls = "".join(f"{_call(one)}\n" for one in self.partitions)
        script = Path(__file__).with_name("vbmeta.sh").read_bytes()
        return {"vbmeta": script + calls.encode(), "vbmeta-key": self.certificate}


def _call(one: Expected) -> str:
    label = f"{one.name}_$slot" if one.slotted else one.name
    header, described = (hashlib.sha256(part).hexdigest() for part in (one.header, one.described))
    sizes = f"{one.authentication} {one.auxiliary} {one.signature}"
    return f'check_vbmeta "{label}" {header} {sizes} {len(one.described)} {described}'
