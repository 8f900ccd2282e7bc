# SPDX-License-Identifier: Apache-2.0
"""vbmeta partitions, as the initramfs checks them: what it is told of each, and the script that does it.

The initramfs lies in a signed FIT or kernel image, so what stands in it is as good as the key. It cannot hold the
digest of a vbmeta that describes the boot image which it lies in itself, and so it checks the signature: the kernel
does, with KEYCTL_PKEY_VERIFY (keyctl(2)), by a key that it takes as an X.509 certificate alone.
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
    slotted         whether there is one for each slot
    header          the 256 bytes that it starts with, all of them known before the boot image is
    authentication, auxiliary, signature  bytes of both blocks and of the signature
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
    """All of a board's; `certificate`: the signer's, DER."""

    certificate: bytes
    partitions: tuple[Expected, ...]

    def files(self) -> dict[str, bytes]:
        """Name in the initramfs → content. The init script reads 'vbmeta', which checks them all."""
        calls = "".join(f"{_call(one)}\n" for one in self.partitions)
        script = Path(__file__).with_name("vbmeta.sh").read_bytes()
        return {"vbmeta": script + calls.encode(), "vbmeta-key": self.certificate}


def _call(one: Expected) -> str:
    label = f"{one.name}_$slot" if one.slotted else one.name
    header, described = (hashlib.sha256(part).hexdigest() for part in (one.header, one.described))
    sizes = f"{one.authentication} {one.auxiliary} {one.signature}"
    return f'check_vbmeta "{label}" {header} {sizes} {len(one.described)} {described}'
