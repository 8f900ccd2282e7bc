# SPDX-License-Identifier: Apache-2.0
"""Open signers by URI.

dev:NAME            a development key, made on first use
file:PATH           a PEM private key, plain or encrypted (``?passphrase=env:NAME``, ``fd:N``, ``prompt``)
pkcs11:…            a key in a token (RFC 7512)
command:PROGRAM …   a program: digest in, signature out
offline:FOLDER      a key elsewhere: digests go out, signatures come back

A signing service would be one more scheme in `SCHEMES`; callers only see `Signer`, and sign with `sign`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erofs_edge.errors import UsageError
from erofs_edge.trust.external import open_command
from erofs_edge.trust.files import development_key, file_key, keys_directory
from erofs_edge.trust.key import (
    KeySigner,
    PublicKey,
    Signer,
    VerificationKey,
    public_key_pem,
    read_public_key,
    rsa_key,
    sign,
)
from erofs_edge.trust.offline import open_offline
from erofs_edge.trust.token import open_token
from erofs_edge.trust.uri import parameters

__all__ = [
    "KeySigner",
    "PublicKey",
    "Signer",
    "VerificationKey",
    "keys_directory",
    "open_signer",
    "public_key_pem",
    "read_public_key",
    "rsa_key",
    "sign",
]


def open_signer(uri: str, *, make: bool = True) -> Signer:
    """Open the signer that a board's ``sign.key`` names. `make`: create a missing development key.

    Raises UsageError for a URI of an unknown scheme, ErofsEdgeError if the key cannot be used.
    """
    scheme, colon, rest = uri.partition(":")
    opener = SCHEMES.get(scheme)
    if not colon or opener is None:
        # the URI itself is not shown: it may contain a PIN
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise UsageError(
            f"unknown kind of key {scheme[:40]!r}",
            hint=_meant(uri) or f"a key is named by one of {known} as in dev:dev or file:key.pem",
        )
    return opener(rest) if make or scheme != "dev" else development_key(rest, make=False)


def _meant(text: str) -> str | None:
    """A hint, if text without a scheme is the path of a key or the name of one made by `keys new`."""
    if ":" in text or not text:
        return None
    path = Path(text) if "/" in text or text.endswith(".pem") else keys_directory() / f"{text}.pem"
    return f"did you mean file:{path}?" if path.is_file() else None


def _open_file(rest: str) -> Signer:
    path, query = parameters("file", rest, {"passphrase"})
    return file_key(Path(path), query.get("passphrase"))


SCHEMES: dict[str, Callable[[str], Signer]] = {
    "dev": development_key,
    "file": _open_file,
    "pkcs11": open_token,
    "command": open_command,
    "offline": open_offline,
}
