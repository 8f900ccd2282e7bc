# SPDX-License-Identifier: Apache-2.0
"""The Raspberry Pi 4's signed boot: boot.img, a FAT volume with all of the firmware's files, and boot.sig beside it.

With SIGNED_BOOT=1 in its configuration, the boot loader in the EEPROM reads boot.img only and starts it if boot.sig
matches its public key. Format of boot.sig, three lines of text: the SHA-256 of boot.img in hex; `ts: ` and a time in
seconds since 1970; `rsa2048: ` and the PKCS#1 v1.5 signature over that SHA-256 in hex (Raspberry Pi documentation,
"Secure boot"; rpi-eeprom's rpi-eeprom-digest).

The signed FIT also contains a digest over the names and contents of the firmware's files, so a disk can be checked from
outside, whatever the EEPROM does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.trust.key import Signer, VerificationKey, rsa_key, sign

IMAGE, SIGNATURE, CONFIG = "boot.img", "boot.sig", "config.txt"
OUTER_CONFIG = b"boot_ramdisk=1\n"
"""the config.txt beside boot.img: use boot.img even if the EEPROM does not insist on a signature"""
BITS = 2048
IMAGE_MIN, IMAGE_SLACK = 24 << 20, 2 << 20
"""bytes: FAT16's smallest number of clusters, and room for the tables"""
_LINES = re.compile(rb"([0-9a-f]{64})\nts: ([0-9]{1,12})\nrsa2048: ([0-9a-f]{512})\n?")


def image_size(files: Mapping[str, bytes]) -> int:
    """Size of a boot.img for these files in bytes, whole MiB."""
    needed = sum(len(data) + 4096 for data in files.values()) * 17 // 16 + IMAGE_SLACK
    return max(IMAGE_MIN, -(-needed >> 20) << 20)


def boot_signature(image: bytes, signer: Signer, epoch: int) -> bytes:
    """Make boot.sig. Raises ErofsEdgeError for a key that the boot ROM cannot hold: it must be RSA-2048."""
    key = rsa_key(signer, SIGNATURE)
    if key.key_size != BITS or key.public_numbers().e != 65537:
        raise ErofsEdgeError(
            f"the Raspberry Pi's signed boot needs an RSA-{BITS} key, this one has {key.key_size} bits",
            hint=f"sign this board with an RSA-{BITS} key, or leave boot.signed_image out",
        )
    digest = hashlib.sha256(image).hexdigest()
    return f"{digest}\nts: {epoch}\nrsa2048: {sign(signer, image).hex()}\n".encode()


def verify_boot_signature(text: bytes, image: bytes, key: VerificationKey) -> None:
    """Check boot.sig. Raises FormatError if it is malformed, VerificationError if it does not match."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    found = _LINES.fullmatch(text)
    if found is None:
        raise FormatError("not a signature of a boot image", where=SIGNATURE)
    if hashlib.sha256(image).hexdigest().encode() != found[1]:
        raise VerificationError(f"{IMAGE} has another hash", where=SIGNATURE)
    try:
        rsa_key(key, SIGNATURE).verify(bytes.fromhex(found[3].decode()), image, PKCS1v15(), SHA256())
    except InvalidSignature as error:
        raise VerificationError("the signature does not match", where=SIGNATURE) from error


def files_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256, in hex, over the SHA-256 and name of each file, in the order of the names, ignoring case."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files, key=str.casefold)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
