# SPDX-License-Identifier: Apache-2.0
"""A self-signed certificate for a key, for verifiers that want one (kernel keyrings, UEFI db, systemd).

It derives from key, name and one date, so the same key has the same certificate wherever it is made: RSA's PKCS#1 v1.5
signature is deterministic too. Form: RFC 5280.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import ErofsEdgeError, FormatError
from erofs_edge.trust import der
from erofs_edge.trust.key import PublicKey, Signer, VerificationKey, public_key_der, sign, supported

if TYPE_CHECKING:
    from erofs_edge.trust.key import AnyPublicKey

NEVER = "99991231235959Z"  # "no well-defined expiration date", RFC 5280 section 4.1.2.5
OID_COMMON_NAME = "2.5.4.3"
OID_ORGANIZATION = "2.5.4.10"
DEVELOPMENT = "development key, protects nothing"
"""organization in the certificates of development keys, and so in every PKCS#7 signature made with one"""
OID_SHA256 = "2.16.840.1.101.3.4.2.1"
OID_RSA = "1.2.840.113549.1.1.1"
OID_RSA_SHA256 = "1.2.840.113549.1.1.11"
OID_ECDSA_SHA256 = "1.2.840.10045.4.3.2"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as verifiers see it.

    der        the whole certificate
    issuer     the Name, DER; with `serial` it identifies the certificate in a PKCS#7 signature
    not_before, not_after  seconds since 1970
    """

    der: bytes
    issuer: bytes
    serial: int
    key: PublicKey
    not_before: int
    not_after: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER form, in hex, as in systemd's certificateFingerprint."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        import base64
        import textwrap

        lines = "\n".join(textwrap.wrap(base64.b64encode(self.der).decode(), 64))
        return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n".encode()


def self_signed(signer: Signer, epoch: int) -> Certificate:
    """Make the certificate of a signer: valid from `epoch` (seconds since 1970) without end, CN = the signer's name.

    Raises ErofsEdgeError if the signer fails.
    """
    spki = public_key_der(signer)
    key_id = hashlib.sha256(spki).digest()[:20]  # any unique value will do (RFC 5280 section 4.2.1.2)
    marks = [(OID_ORGANIZATION, DEVELOPMENT)] if signer.development else []
    name = der.element(der.SEQUENCE, *(_attribute(oid, text) for oid, text in [*marks, (OID_COMMON_NAME, signer.name)]))
    serial = int.from_bytes(hashlib.sha256(b"erofs-edge certificate\0" + spki).digest()[:16], "big") >> 1 | 1 << 126
    algorithm = signature_algorithm(signer.public_key, certificate=True)
    body = der.element(
        der.SEQUENCE,
        der.element(der.CONTEXT, der.integer(2)),  # version 3
        der.integer(serial),
        algorithm,
        name,
        der.element(der.SEQUENCE, der.moment(epoch), der.moment(der.epoch_of(NEVER))),
        name,
        spki,
        der.element(der.CONTEXT | 3, der.element(der.SEQUENCE, *_extensions(key_id))),
    )
    signature = sign(signer, body)
    raw = der.element(der.SEQUENCE, body, algorithm, der.element(der.BIT_STRING, b"\0", signature))
    return Certificate(
        raw, name, serial, PublicKey(signer.name, signer.public_key), epoch, der.epoch_of(NEVER)
    )  # fmt: skip


def read_certificate(path: Path, key: VerificationKey, epoch: int) -> Certificate:
    """Read a certificate in a PEM or DER file, which must belong to the key and be valid at `epoch` (seconds since
    1970).

    Raises ErofsEdgeError if it does not or is not, or if the file cannot be read.
    """
    try:
        found = load_certificate(path.read_bytes(), key.name)
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the certificate: {error.strerror}", where=str(path)) from error
    except ErofsEdgeError as error:
        raise ErofsEdgeError(error.message, where=str(path), hint=error.hint) from error
    if public_key_der(found.key) != public_key_der(key):
        raise ErofsEdgeError(f"the certificate does not belong to key '{key.name}'", where=str(path))
    check_validity(found, epoch, str(path))
    return found


def check_validity(certificate: Certificate, epoch: int, where: str | None = None) -> None:
    """Raises ErofsEdgeError if a certificate is not valid at `epoch`, seconds since 1970."""
    import time

    for late, word, limit in (
        (epoch < certificate.not_before, "is not valid before", certificate.not_before),
        (epoch > certificate.not_after, "has expired at", certificate.not_after),
    ):
        if late:
            shown, now = (time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t)) for t in (limit, epoch))
            raise ErofsEdgeError(
                f"the certificate {word} {shown}; the build's date is {now}",
                where=where,
                hint="use a certificate that covers the build's date",
            )


def load_certificate(data: bytes, name: str) -> Certificate:
    """A certificate from PEM or DER. Raises FormatError on malformed input, ErofsEdgeError for an unusable key."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        found = load(data)
        key = found.public_key()
        return Certificate(
            found.public_bytes(Encoding.DER),
            found.issuer.public_bytes(),
            found.serial_number,
            PublicKey(name, supported(key, f"certificate of '{name}'")),
            int(found.not_valid_before_utc.timestamp()),
            int(found.not_valid_after_utc.timestamp()),
        )
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise FormatError("not an X.509 certificate", hint="PEM or DER, as openssl x509 prints it") from error


def signature_algorithm(key: AnyPublicKey, *, certificate: bool = False) -> bytes:
    """AlgorithmIdentifier of a signature with SHA-256. For RSA, PKCS#7 names only the key's algorithm (RFC 5652)."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        name = OID_RSA_SHA256 if certificate else OID_RSA
        return der.element(der.SEQUENCE, der.oid(name), der.element(der.NULL))
    return der.element(der.SEQUENCE, der.oid(OID_ECDSA_SHA256))


def _attribute(oid: str, text: str) -> bytes:
    """A relative distinguished name with one attribute."""
    return der.element(der.SET, der.element(der.SEQUENCE, der.oid(oid), der.element(der.UTF8, text.encode())))


def _extensions(key_id: bytes) -> list[bytes]:
    critical = der.element(der.BOOLEAN, b"\xff")

    def extension(oid: str, value: bytes, flag: bytes = b"") -> bytes:
        return der.element(der.SEQUENCE, der.oid(oid), flag, der.element(der.OCTET_STRING, value))

    return [
        extension("2.5.29.19", der.element(der.SEQUENCE), critical),  # basicConstraints: not a CA
        extension("2.5.29.15", der.element(der.BIT_STRING, b"\x07\x80"), critical),  # keyUsage: digitalSignature
        extension("2.5.29.14", der.element(der.OCTET_STRING, key_id)),  # subjectKeyIdentifier
    ]
