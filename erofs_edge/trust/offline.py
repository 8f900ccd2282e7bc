# SPDX-License-Identifier: Apache-2.0
"""`offline:`: a key on a machine without a network. Digests are left in a folder, and signatures are put back into it.

For each digest to be signed the folder has `DIGEST.digest` (32 bytes, SHA-256) and, once it is signed, `DIGEST.sig`.
The digests depend only on the inputs, so the same command, run again, finds its signatures and continues.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import ErofsEdgeError, UsageError, VerificationError
from erofs_edge.trust.key import VerificationKey, algorithm, read_public_key, verifies
from erofs_edge.trust.uri import parameters
from erofs_edge.writing import beside

if TYPE_CHECKING:
    from erofs_edge.trust.key import AnyPublicKey

DIGEST, SIGNATURE = ".digest", ".sig"


class SignaturesMissingError(ErofsEdgeError):
    """Digests in a folder have not been signed yet."""


@dataclass(frozen=True, slots=True)
class OfflineSigner:
    """A key elsewhere, whose signatures are put into the folder."""

    name: str
    public_key: AnyPublicKey
    folder: Path
    development: bool = False

    def sign_digest(self, digest: bytes) -> bytes:
        """Raises SignaturesMissingError, after leaving the digest in the folder, if the signature is missing."""
        path = self.folder / f"{digest.hex()}{SIGNATURE}"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / f"{digest.hex()}{DIGEST}", digest)
        raise SignaturesMissingError(
            f"a digest still has to be signed by '{self.name}' ({algorithm(self.public_key)})",
            where=str(self.folder / f"{digest.hex()}{DIGEST}"),
            hint=f"sign it; erofs-edge sign --attach {self.folder} --key PUB SIGNATURE; then run this command again",
        )


def open_offline(rest: str) -> OfflineSigner:
    """Open the signer of `offline:FOLDER?public-key=FILE&name=NAME`. Raises UsageError, ErofsEdgeError."""
    folder, query = parameters("offline", rest, {"public-key", "name"})
    if not folder or "public-key" not in query:
        raise UsageError(
            "an offline: key must name a folder and its public key", hint="offline:FOLDER?public-key=PUB.pem"
        )
    key = read_public_key(Path(query["public-key"]), query.get("name"))
    return OfflineSigner(key.name, key.public_key, Path(folder))


def waiting(folder: Path) -> list[str]:
    """The digests in a folder, in hex, that have no signature yet."""
    return [text for text in _digests(folder) if not (folder / f"{text}{SIGNATURE}").exists()]


def attach(folder: Path, key: VerificationKey, signatures: list[bytes]) -> list[str]:
    """Store each signature beside the digest that it matches; return the digests signed, in hex.

    A build asks for signatures more than once, and each time all signatures of the folder may be given: those that are
    there are skipped, but what is damaged is replaced. Nothing is written unless every signature matches. Raises
    VerificationError for one that matches no digest.
    """
    digests = _digests(folder)
    matched: dict[str, bytes] = {}
    for number, signature in enumerate(signatures, 1):
        digest = next((d for d in digests if verifies(key.public_key, signature, bytes.fromhex(d))), None)
        if digest is None:
            raise VerificationError(
                f"signature {number} of {len(signatures)} is of none of the {len(digests)} digest(s)",
                where=str(folder),
                hint=f"it must be made with the private key of '{key.name}' over a digest of this folder",
            )
        if not _is_signed(folder, digest, key):
            matched[digest] = signature
    for digest, signature in matched.items():
        _write(folder / f"{digest}{SIGNATURE}", signature)
    return list(matched)


def _digests(folder: Path) -> list[str]:
    """All digests in a folder, in hex, sorted. Files with other names are not ours."""
    names = (path.stem for path in folder.glob(f"*{DIGEST}"))
    return sorted(name for name in names if re.fullmatch("[0-9a-f]{64}", name))


def _is_signed(folder: Path, digest: str, key: VerificationKey) -> bool:
    path = folder / f"{digest}{SIGNATURE}"
    return path.exists() and verifies(key.public_key, path.read_bytes(), bytes.fromhex(digest))


def _write(path: Path, data: bytes) -> None:
    with beside(path, "what is to be signed") as temporary:
        temporary.write_bytes(data)
