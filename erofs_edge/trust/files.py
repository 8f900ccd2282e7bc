# SPDX-License-Identifier: Apache-2.0
"""Private keys in PEM files: make, read, list, replace. They are never readable by anyone but their owner."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.homes import user_folder
from erofs_edge.trust.key import CURVE, KeySigner, fingerprint, supported
from erofs_edge.trust.passphrase import SOURCES, passphrase
from erofs_edge.writing import folder_beside

if TYPE_CHECKING:
    from erofs_edge.trust.key import AnyPrivateKey

DEVELOPMENT_MARK = b"erofs-edge development key: it protects nothing\n"
"""text before the PEM of keys made on first use; PEM readers skip it"""
KINDS = ("rsa2048", "rsa3072", "rsa4096", "ecdsa-p256")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
HELD = re.compile(rb"-----BEGIN (RSA |EC |ENCRYPTED )?PRIVATE KEY-----")
_ELSEWHERE = "set EROFS_EDGE_KEYS to a directory you can write, or name a key with file:PATH"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file in a listing. kind and fingerprint are None if it is encrypted."""

    path: Path
    name: str
    development: bool
    encrypted: bool
    kind: str | None
    fingerprint: str | None
    private: bool
    """whether only its owner can read it"""


def keys_directory() -> Path:
    """The folder of development keys and of those made by `keys new`: EROFS_EDGE_KEYS, else the user's data
    directory.
    """
    if override := os.environ.get("EROFS_EDGE_KEYS"):
        return Path(override)
    return user_folder("data", "EROFS_EDGE_KEYS") / "keys"


def _is_there(path: Path) -> bool:
    """Raises ErofsEdgeError if that cannot be determined, as in another user's home."""
    try:
        return path.exists()
    except OSError as error:
        raise ErofsEdgeError(f"cannot read: {error.strerror}", where=str(path), hint=_ELSEWHERE) from error


def check_name(name: str) -> str:
    """Return the name. Raises UsageError if a key cannot be called that."""
    if not NAME.fullmatch(name):
        raise UsageError(f"bad key name {name!r}", hint="use lower-case letters, digits, '.', '_' and '-'")
    return name


def development_key(name: str, *, make: bool = True) -> KeySigner:
    """The development key of a name, made on first use unless `make` is False. Raises UsageError, ErofsEdgeError."""
    path = keys_directory() / f"{check_name(name)}.pem"
    if not _is_there(path):
        if not make:
            hint = (
                f"make it: erofs-edge keys new {name} --development; a build that signs with dev:{name} also makes it"
            )
            raise ErofsEdgeError("no such key", where=str(path), hint=hint)
        make_key(path, "rsa2048", development=True)
    return KeySigner(name, load_key(path)[0], development=True)


def file_key(path: Path, source: str | None = None) -> KeySigner:
    """The key in a PEM file; `source` says where its passphrase comes from, see `passphrase`. Raises ErofsEdgeError."""
    key, development = load_key(path, source)
    return KeySigner(path.stem, key, development)


def load_key(path: Path, source: str | None = None) -> tuple[AnyPrivateKey, bool]:
    """The private key in a PEM file, and whether it is marked as a development key. Raises ErofsEdgeError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem, secret = _pem(path), None
    if _encrypted(pem):
        secret = passphrase(source, path.name).encode()
    try:
        key = load_pem_private_key(pem, password=secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # without the cause, because a library's message may quote what it read
        raise _unreadable(path, secret is not None) from None
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise ErofsEdgeError(
            f"the signing key is {kind}; supported are RSA and ECDSA P-256",
            where=str(path),
            hint="U-Boot checks RSA: use RSA-2048",
        )
    supported(key.public_key(), str(path))
    return key, pem.startswith(DEVELOPMENT_MARK)


def make_key(
    path: Path, kind: str, *, secret: str | None = None, development: bool = False, replace: bool = False
) -> None:
    """Make a key at a path, readable by its owner only. If several processes do so at once, one wins and all use its
    key.

    secret   the passphrase to encrypt it with; None leaves it unencrypted
    replace  replace an existing key

    Raises ErofsEdgeError if the folder cannot be written, or for an empty passphrase.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
    from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    if kind not in KINDS:
        raise UsageError(f"unknown kind of key {kind!r}", hint=f"one of {', '.join(KINDS)}")
    if secret == "":
        raise ErofsEdgeError("an empty passphrase encrypts nothing", where=str(path), hint=SOURCES)
    key: AnyPrivateKey = (
        generate_private_key(65537, int(kind[3:])) if kind != "ecdsa-p256" else generate_ec(SECP256R1())
    )
    encryption = BestAvailableEncryption(secret.encode()) if secret is not None else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with folder_beside(path) as folder:
            temporary = folder / path.name
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as handle:
                handle.write((DEVELOPMENT_MARK if development else b"") + pem)
                handle.flush()
                os.fsync(fd)
            if replace:
                temporary.replace(path)
            else:
                # unlike a rename, a link never replaces a key with which another process has already signed
                with suppress(FileExistsError):
                    os.link(temporary, path)
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot make a {'development ' if development else ''}key: {error.strerror}",
            where=str(path),
            hint=_ELSEWHERE,
        ) from error


def rotate_key(path: Path, *, kind: str | None = None, secret: str | None = None, source: str | None = None) -> Path:
    """Replace the key at `path` by a new one of the same kind; return the path to which the old key was moved.

    The old key's new file name contains its fingerprint: devices that only know the old key still need releases signed
    with it. `secret` as for `make_key`. Raises ErofsEdgeError.
    """
    key, development = load_key(path, source)
    old = KeySigner(path.stem, key)
    kept = path.with_name(f"{path.stem}.{fingerprint(old)[:12]}{path.suffix}")
    if kept.exists() and not kept.samefile(path):  # the same if an earlier run was killed
        raise ErofsEdgeError("a file already has the name for the old key", where=str(kept), hint="move that file away")
    if kept_now := not kept.exists():
        os.link(path, kept)
    try:
        make_key(path, kind or kind_of(key), secret=secret, development=development, replace=True)
    except BaseException:
        if kept_now:
            kept.unlink()
        raise
    return kept


def is_encrypted(path: Path) -> bool:
    """Whether the key in a file needs a passphrase; False if it is not a key. Raises ErofsEdgeError."""
    return _encrypted(_pem(path))


def list_keys(folder: Path) -> list[KeyFile]:
    """The private keys in a folder, by name; other files are skipped."""
    found = []
    for path in sorted(folder.glob("*.pem")) if _is_there(folder) and folder.is_dir() else []:
        pem = path.read_bytes()
        if not HELD.search(pem):
            continue
        encrypted, kind, digest = _encrypted(pem), None, None
        if not encrypted:
            try:
                signer = KeySigner(path.stem, load_key(path)[0])
            except ErofsEdgeError:
                continue
            kind, digest = kind_of(signer.key), fingerprint(signer)
        private = not stat.S_IMODE(path.stat().st_mode) & 0o077
        found.append(
            KeyFile(path, path.stem, pem.startswith(DEVELOPMENT_MARK), encrypted, kind, digest, private)
        )  # fmt: skip
    return found


def kind_of(key: AnyPrivateKey) -> str:
    """'rsa2048', …: a name in KINDS."""
    return "ecdsa-p256" if getattr(getattr(key, "curve", None), "name", "") == CURVE else f"rsa{key.key_size}"


def _pem(path: Path) -> bytes:
    """The unchanged content of a key file. Raises ErofsEdgeError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot read the signing key: {error.strerror}",
            where=str(path),
            hint="name a PEM private key, make one (erofs-edge keys new NAME), or use dev:dev for development",
        ) from error


def _encrypted(pem: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _unreadable(path: Path, had_passphrase: bool) -> ErofsEdgeError:
    if had_passphrase:
        return ErofsEdgeError("the passphrase does not unlock the signing key", where=str(path), hint="try again")
    return ErofsEdgeError(
        "not a PEM private key",
        where=str(path),
        hint="make one: erofs-edge keys new NAME",
    )
