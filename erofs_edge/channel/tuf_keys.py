# SPDX-License-Identifier: Apache-2.0
"""Our signers for python-tuf: any key that signs a build can sign a channel, wherever it is."""

from __future__ import annotations

from securesystemslib.signer import Key, SecretsHandler, Signature, SSlibKey
from securesystemslib.signer import Signer as TufSigner

from erofs_edge.errors import UsageError
from erofs_edge.trust.key import Signer, VerificationKey, algorithm, fingerprint, public_key_pem, sign

SCHEMES = {"rsa": "rsa-pkcs1v15-sha256", "ecdsa": "ecdsa-sha2-nistp256"}
"""TUF specification 4.2: keytype → scheme"""


def tuf_key(key: VerificationKey) -> Key:
    """The public half; its identifier is the SHA-256 of its SubjectPublicKeyInfo, as everywhere here."""
    kind = "ecdsa" if algorithm(key.public_key).startswith("ecdsa") else "rsa"
    return SSlibKey(fingerprint(key), kind, SCHEMES[kind], {"public": public_key_pem(key).decode()})


class ChannelSigner(TufSigner):
    """A signer of ours."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._key = tuf_key(signer)

    @property
    def public_key(self) -> Key:
        return self._key

    def sign(self, payload: bytes) -> Signature:
        """Raises ErofsEdgeError if the signer fails."""
        return Signature(self._key.keyid, sign(self._signer, payload).hex())

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> ChannelSigner:
        """Not supported: keys are only opened by `trust.signer.open_signer`."""
        raise UsageError("keys of a channel are opened by open_signer")
