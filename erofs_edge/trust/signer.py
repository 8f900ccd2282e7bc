# SPDX-License-Identifier: Apache-2.0
"""Who signs, by URI: ``dev:NAME`` is a development key made on first use, ``file:PATH`` a PEM private key.

A key in a hardware token or a signing service is one more scheme in `SCHEMES`; callers only see `Signer`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from erofs_edge.errors import ErofsEdgeError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

DEV_KEY_BITS = 2048


class VerificationKey(Protocol):
    """A public RSA key and `name`, what verifiers know it as (U-Boot's key-name-hint)."""

    @property
    def name(self) -> str: ...

    @property
    def public_key(self) -> RSAPublicKey: ...


class Signer(VerificationKey, Protocol):
    """A private RSA key that may be anywhere.

    development  true for a key that was made for convenience and protects nothing
    """

    @property
    def development(self) -> bool: ...

    def sign_pkcs1v15_sha256(self, data: bytes) -> bytes:
        """RSASSA-PKCS1-v1_5 with SHA-256 over data (RFC 8017 section 8.2): the same input gives the same bytes."""
        ...


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A private key held in memory."""

    name: str
    key: RSAPrivateKey
    development: bool = False

    @property
    def public_key(self) -> RSAPublicKey:
        return self.key.public_key()

    def sign_pkcs1v15_sha256(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        return self.key.sign(data, PKCS1v15(), SHA256())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key held in memory."""

    name: str
    public_key: RSAPublicKey


def open_signer(uri: str) -> Signer:
    """The signer that a board's ``sign.key`` names.

    Raises UsageError on a URI of no known scheme, ErofsEdgeError where the key cannot be read or is of a kind
    that cannot sign a FIT.
    """
    scheme, colon, rest = uri.partition(":")
    opener = SCHEMES.get(scheme)
    if not colon or opener is None:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise UsageError(f"unknown key {uri!r}", hint=f"a key is named by one of {known} as in dev:dev or file:key.pem")
    return opener(rest)


def public_key_pem(signer: Signer) -> bytes:
    """The public key as SubjectPublicKeyInfo PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return signer.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public_key(path: Path, name: str) -> PublicKey:
    """The public key in a SubjectPublicKeyInfo PEM file. Raises ErofsEdgeError where there is no RSA key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the public key: {error.strerror}", where=str(path)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ErofsEdgeError("not a public key in PEM", where=str(path)) from error
    if not isinstance(key, RSAPublicKey):
        raise ErofsEdgeError("not an RSA public key", where=str(path))
    return PublicKey(name, key)


def keys_directory() -> Path:
    """Where development keys live: EROFS_EDGE_KEYS, else the user's data directory."""
    if override := os.environ.get("EROFS_EDGE_KEYS"):
        return Path(override)
    from platformdirs import user_data_dir

    return Path(user_data_dir("erofs-edge")) / "keys"


def _open_dev(name: str) -> Signer:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise UsageError(f"bad development key name {name!r}", hint="use lower-case letters, digits, '.', '_' and '-'")
    path = keys_directory() / f"{name}.pem"
    if not path.exists():
        _make_key(path)
    return KeySigner(name, _load(path), development=True)


def _open_file(text: str) -> Signer:
    path = Path(text)
    return KeySigner(path.stem, _load(path))


def _make_key(path: Path) -> None:
    """Make a key at a path, readable by its owner only. Of several makers at once one wins, all go on with its key."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = generate_private_key(65537, DEV_KEY_BITS)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as handle:
                handle.write(pem)
                handle.flush()
                os.fsync(fd)
            # a link, unlike a rename, never replaces the key that another process has already signed with
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            Path(temporary).unlink()
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot make a development key: {error.strerror}",
            where=str(path),
            hint="set EROFS_EDGE_KEYS to a directory you can write, or name a key with file:PATH",
        ) from error


def _load(path: Path) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot read the signing key: {error.strerror}",
            where=str(path),
            hint="name an existing PEM private key, or dev:dev for a development key",
        ) from error
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ErofsEdgeError(
            "the signing key is encrypted with a pass phrase",
            where=str(path),
            hint=f"decrypt it into a protected place: openssl pkey -in {path} -out PLAIN.pem",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ErofsEdgeError(
            "not a PEM private key",
            where=str(path),
            hint="make one: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out KEY.pem",
        ) from error
    if not isinstance(key, RSAPrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise ErofsEdgeError(
            f"the signing key is {kind}, not RSA", where=str(path), hint="U-Boot checks RSA signatures: use RSA-2048"
        )
    return key


SCHEMES: dict[str, Callable[[str], Signer]] = {"dev": _open_dev, "file": _open_file}
