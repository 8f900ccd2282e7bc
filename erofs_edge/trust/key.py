# SPDX-License-Identifier: Apache-2.0
"""The interface of a key: a name, a public half, and signatures over SHA-256 digests.

RSA signs with PKCS#1 v1.5 (RFC 8017 section 8.2), whose bytes depend only on key and data. ECDSA P-256 signatures are
DER (RFC 3279 section 2.2.3); keys in memory make them deterministic (RFC 6979), tokens do not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from erofs_edge.errors import ErofsEdgeError, VerificationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

    AnyPublicKey = RSAPublicKey | EllipticCurvePublicKey
    AnyPrivateKey = RSAPrivateKey | EllipticCurvePrivateKey

RSA_BITS = (2048, 3072, 4096)
CURVE = "secp256r1"
ALGORITHMS = (*(f"rsa{bits}" for bits in RSA_BITS), "ecdsa-p256")


class VerificationKey(Protocol):
    """A public key, and `name`, by which verifiers know it (U-Boot's key-name-hint)."""

    @property
    def name(self) -> str: ...

    @property
    def public_key(self) -> AnyPublicKey: ...


class Signer(VerificationKey, Protocol):
    """A private key, stored anywhere. Callers sign with `sign`, which checks what the signer returns.

    development  true for a key that was made for convenience and protects nothing
    """

    @property
    def development(self) -> bool: ...

    def sign_digest(self, digest: bytes) -> bytes:
        """The signature over a SHA-256 digest: RSASSA-PKCS1-v1_5 or ECDSA in DER. Raises ErofsEdgeError."""
        ...


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A private key held in memory; its repr does not reveal it."""

    name: str
    key: AnyPrivateKey
    development: bool = False

    def __repr__(self) -> str:
        return f"KeySigner({self.name!r})"

    @property
    def public_key(self) -> AnyPublicKey:
        return self.key.public_key()

    def sign_digest(self, digest: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
        from cryptography.hazmat.primitives.hashes import SHA256

        hashed = Prehashed(SHA256())
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(digest, PKCS1v15(), hashed)
        return self.key.sign(digest, ECDSA(hashed, deterministic_signing=True))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key held in memory."""

    name: str
    public_key: AnyPublicKey


class BlankSignature(bytes):
    """What a signer without a key returns instead of a signature: nothing accepts it. Only our own code makes one."""


def sign(signer: Signer, data: bytes) -> bytes:
    """Sign data's SHA-256 and check the signature with the public key before returning it; a blank one is passed on.

    Raises VerificationError if the signer returned something else, ErofsEdgeError if it failed.
    """
    digest = hashlib.sha256(data).digest()
    signature = signer.sign_digest(digest)
    if isinstance(signature, BlankSignature):
        return bytes(signature)
    if not verifies(signer.public_key, signature, digest):
        raise VerificationError(
            f"the signer '{signer.name}' returned {len(signature)} bytes that are no signature by its public key",
            hint="check that the signer uses the private key of this public key, and signs the digest itself",
        )
    return signature


def verifies(key: AnyPublicKey, signature: bytes, digest: bytes) -> bool:
    """Whether a signature over a SHA-256 digest is this key's."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from cryptography.hazmat.primitives.hashes import SHA256

    hashed = Prehashed(SHA256())
    try:
        if isinstance(key, RSAPublicKey):
            key.verify(signature, digest, PKCS1v15(), hashed)
        else:
            key.verify(signature, digest, ECDSA(hashed))
    except InvalidSignature:
        return False
    return True


def algorithm(key: AnyPublicKey) -> str:
    """'rsa2048', 'rsa3072', 'rsa4096' or 'ecdsa-p256'. Raises ErofsEdgeError for keys that verifiers do not accept."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        exponent = key.public_numbers().e
        if key.key_size in RSA_BITS and exponent == 65537:
            return f"rsa{key.key_size}"
        found = f"an RSA key of {key.key_size} bits with exponent {exponent}"
    elif key.curve.name == CURVE:
        return "ecdsa-p256"
    else:
        found = f"an elliptic-curve key on {key.curve.name}"
    raise ErofsEdgeError(f"{found}: boot loaders cannot check its signatures", hint=f"use {', '.join(ALGORITHMS)}")


def rsa_key(key: VerificationKey, purpose: str) -> RSAPublicKey:
    """The public key, which must be RSA. Raises ErofsEdgeError."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if not isinstance(key.public_key, RSAPublicKey):
        raise ErofsEdgeError(f"key '{key.name}' is not an RSA key, which {purpose} needs", hint="use an RSA-2048 key")
    return key.public_key


def supported(key: object, where: str) -> AnyPublicKey:
    """A public key of a supported kind. Raises ErofsEdgeError naming the kind and `where` it came from."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        kind = type(key).__name__.removesuffix("Key").removesuffix("Public").removesuffix("Private").strip("_")
        raise ErofsEdgeError(f"a key of type {kind}", where=where, hint=f"use {', '.join(ALGORITHMS)}")
    try:
        algorithm(key)
    except ErofsEdgeError as error:
        raise ErofsEdgeError(error.message, where=where, hint=error.hint) from None
    return key


def public_key_pem(key: VerificationKey) -> bytes:
    """The public key as SubjectPublicKeyInfo PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_key_der(key: VerificationKey) -> bytes:
    """The public key as SubjectPublicKeyInfo DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: VerificationKey) -> str:
    """SHA-256, in hex, of the SubjectPublicKeyInfo."""
    return hashlib.sha256(public_key_der(key)).hexdigest()


def read_public_key(path: Path, name: str | None = None) -> PublicKey:
    """Read the public key in a SubjectPublicKeyInfo PEM file, or that of a PEM certificate. Without a `name` it is
    called like its file, without .pub and .pem. Raises ErofsEdgeError."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the public key: {error.strerror}", where=str(path)) from error
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            key: object = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ErofsEdgeError(
            "not a public key in PEM", where=str(path), hint="openssl pkey -in KEY.pem -pubout -out PUB.pem"
        ) from error
    if name is None:
        name = path.name.removesuffix(".pem").removesuffix(".pub")
    return PublicKey(name, supported(key, str(path)))
