# SPDX-License-Identifier: Apache-2.0
"""Signed root hashes in the forms that the kernel and systemd use, and a strict check.

The signature is a detached PKCS#7 SignedData (RFC 2315, RFC 5652) in DER, without attributes and certificates; its
content is the root hash as lower-case hexadecimal text without a newline (Linux ``drivers/md/dm-verity-verify-sig.c``,
cryptsetup ``veritysetup --root-hash-signature``). A verity-signature partition of the Discoverable Partitions
Specification contains it in JSON, padded with zeros (systemd ``src/shared/dissect-image.c``, ``src/repart/repart.c``).
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust import der
from erofs_edge.trust.certificate import OID_SHA256, Certificate
from erofs_edge.trust.key import Signer, VerificationKey, verifies
from erofs_edge.trust.pkcs7 import OID_DATA, read_signed_data, read_signer, signed_data

PARTITION_SIZE = 16 << 10
"""bytes of a verity-signature partition, as systemd-repart makes it"""
PARTITION_MAX = 4 << 20
"""bytes: systemd does not read larger ones"""


def sign_root_hash(root_hash: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """Make the PKCS#7 signature of a root hash for the kernel. Raises ErofsEdgeError if the signer fails."""
    return sign_detached(root_hash.hex().encode(), signer, certificate)


def verity_signature_json(root_hash: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """The content of a verity-signature partition: PARTITION_SIZE bytes. Raises ErofsEdgeError if the signer fails.

    systemd checks rootHash and signature; certificateFingerprint says which certificate to look for.
    """
    record = {
        "rootHash": root_hash.hex(),
        "certificateFingerprint": certificate.fingerprint,
        "signature": base64.b64encode(sign_root_hash(root_hash, signer, certificate)).decode(),
    }
    return json.dumps(record, separators=(",", ":")).encode().ljust(PARTITION_SIZE, b"\0")


def sign_detached(content: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """Make a detached PKCS#7 signature in DER, SHA-256, without attributes and certificates.

    Equal to the output of ``openssl smime -sign -binary -noattr -nocerts -outform der`` for the same content.
    """
    return signed_data(content, signer, certificate, [der.element(der.SEQUENCE, der.oid(OID_DATA))])


@dataclass(frozen=True, slots=True)
class Detached:
    """A parsed signature: its signer and its bytes."""

    issuer: bytes
    serial: int
    signature: bytes


def parse_detached(raw: bytes) -> Detached:
    """Parse a detached PKCS#7 signature of one signer. Raises FormatError for any form that `sign_detached` does not
    make.

    Included certificates are skipped; attributes are refused, as by the kernel's check of a root hash.
    """
    data = read_signed_data(raw, "not a PKCS#7 SignedData")
    digests = data.enter(der.SET)
    _expect_sha256(digests)
    digests.finish()
    content = data.enter(der.SEQUENCE)
    content.expect(OID_DATA, "the PKCS#7 content is not plain data")
    if content.position != content.end:
        raise FormatError("the PKCS#7 signature is not detached")
    if data.position < data.end and data.data[data.position] == der.CONTEXT:
        data.take(der.CONTEXT)
    one = read_signer(data)
    names = one.enter(der.SEQUENCE)
    issuer, serial = names.whole(der.SEQUENCE), names.number()
    names.finish()
    _expect_sha256(one)
    one.take(der.SEQUENCE)
    signature = one.content(der.OCTET_STRING)
    one.finish()
    return Detached(issuer, serial, signature)


def verify_detached(raw: bytes, content: bytes, key: VerificationKey) -> None:
    """Raises FormatError on a malformed signature, VerificationError unless it is this key's over the content."""
    if not verifies(key.public_key, parse_detached(raw).signature, hashlib.sha256(content).digest()):
        raise VerificationError(f"the signature does not match key '{key.name}'")


def verify_root_hash(raw: bytes, root_hash: bytes, key: VerificationKey) -> None:
    """`verify_detached` for a root hash."""
    verify_detached(raw, root_hash.hex().encode(), key)


def parse_verity_signature(raw: bytes) -> tuple[bytes, str, bytes]:
    """(root hash, certificate fingerprint, PKCS#7) of a verity-signature partition. Raises FormatError."""
    if len(raw) > PARTITION_MAX:
        raise FormatError(f"a verity-signature partition of {len(raw)} bytes, at most {PARTITION_MAX} are read")
    text, _, rest = raw.partition(b"\0")
    if any(rest):
        raise FormatError("bytes after the verity signature", where=f"offset {len(text):#x}")
    try:
        record = json.loads(text)
        root_hash, signature = bytes.fromhex(record["rootHash"]), base64.b64decode(record["signature"], validate=True)
        fingerprint = record.get("certificateFingerprint", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError("not a verity signature in JSON") from error
    if not isinstance(fingerprint, str) or not root_hash:
        raise FormatError("not a verity signature in JSON")
    return root_hash, fingerprint, signature


def verify_verity_signature(raw: bytes, root_hash: bytes, key: VerificationKey) -> None:
    """Raises FormatError on a malformed partition, VerificationError for another root hash or another key."""
    found, _, signature = parse_verity_signature(raw)
    if found != root_hash:
        raise VerificationError(f"the signature is of root hash {found.hex()}, not {root_hash.hex()}")
    verify_root_hash(signature, root_hash, key)


def _expect_sha256(reader: der.Reader) -> None:
    algorithm = reader.enter(der.SEQUENCE)
    algorithm.expect(OID_SHA256, "the PKCS#7 digest is not SHA-256")
    if algorithm.position < algorithm.end:
        algorithm.take(der.NULL)
    algorithm.finish()
