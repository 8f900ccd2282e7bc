# SPDX-License-Identifier: Apache-2.0
"""The signatures of a build besides the FIT's: of the root hash, for kernel and systemd, and of the release record.

sign.pub.pem, sign.crt     the key, and the certificate for it (PEM)
system.root-hash.p7s       detached PKCS#7 of the root hash, as dm-verity's root_hash_sig_key_desc takes it
system.verity-sig.json     the content of a verity-signature partition
release.json.p7s           detached PKCS#7 of the whole release.json
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erofs_edge.build import names
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust.certificate import Certificate, self_signed
from erofs_edge.trust.key import Signer, algorithm, fingerprint, public_key_pem, sign
from erofs_edge.trust.offline import SignaturesMissingError, waiting
from erofs_edge.trust.root_hash import sign_detached, verity_signature_json

PUBLIC_KEY = names.PUBLIC_KEY
CERTIFICATE = "sign.crt"
ROOT_HASH_SIGNATURE = "system.root-hash.p7s"
VERITY_SIGNATURE = "system.verity-sig.json"
RELEASE_SIGNATURE = "release.json.p7s"


class Collector:
    """Continues after a missing signature, so that all digests of a build are put into the offline folder together."""

    def __init__(self) -> None:
        self.first: SignaturesMissingError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Sign inside the block; a missing signature is remembered."""
        try:
            yield
        except SignaturesMissingError as error:
            self.first = self.first or error

    def finish(self) -> None:
        """Raises SignaturesMissingError if any was missing."""
        if self.first is None:
            return
        # not every error is about a digest of its own, and one error may stand for several
        count = len(waiting(Path(self.first.where or "").parent))
        said = f"{count} digests wait for their signatures, this one among them" if count > 1 else self.first.message
        raise SignaturesMissingError(said, where=self.first.where, hint=self.first.hint)


def refuse_development(signer: Signer) -> None:
    """Raises ErofsEdgeError for a key that protects nothing: releases cannot be signed with it."""
    if signer.development:
        raise ErofsEdgeError(
            f"'{signer.name}' is a development key: a release cannot be signed with it",
            hint="make a key (erofs-edge keys new NAME); name it in sign.key or --key: file:PATH, pkcs11:…, command:…",
        )


def sign_system(signer: Signer, root_hash: bytes, epoch: int, work: Path, collect: Collector) -> Certificate | None:
    """Write the key's files and the root hash's signatures; return the certificate, if it could be made."""
    (work / PUBLIC_KEY).write_bytes(public_key_pem(signer))
    certificate: Certificate | None = None
    with collect.one():
        certificate = self_signed(signer, epoch)
    with collect.one():
        sign(signer, root_hash.hex().encode())
    if certificate is not None:
        (work / CERTIFICATE).write_bytes(certificate.pem)
        with collect.one():
            (work / ROOT_HASH_SIGNATURE).write_bytes(sign_detached(root_hash.hex().encode(), signer, certificate))
            (work / VERITY_SIGNATURE).write_bytes(verity_signature_json(root_hash, signer, certificate))
    return certificate


def signer_record(signer: Signer, certificate: Certificate) -> dict[str, Any]:
    """The key's entry in release.json, besides its name."""
    return {
        "algorithm": algorithm(signer.public_key),
        "public_key_sha256": fingerprint(signer),
        "certificate_sha256": certificate.fingerprint,
    }


def sign_release(signer: Signer, certificate: Certificate, release: Path) -> None:
    """Write the signature of a release record beside it."""
    release.with_name(RELEASE_SIGNATURE).write_bytes(sign_detached(release.read_bytes(), signer, certificate))
