# SPDX-License-Identifier: Apache-2.0
"""Signed content in CMS: content, signer and signature in one piece.

The form is RFC 5652's SignedData with the content inside (``openssl cms -sign -nodetach -noattr``), one signer,
SHA-256, without attributes: the same key and text give the same bytes. The certificate is included for verifiers that
look for it; ours does not trust a certificate that comes with the signature.
"""

from __future__ import annotations

import hashlib

from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust import der
from erofs_edge.trust.certificate import OID_SHA256, Certificate
from erofs_edge.trust.key import Signer, VerificationKey, verifies
from erofs_edge.trust.pkcs7 import OID_DATA, OID_SIGNED_DATA, signed_data

SIZE_MAX = 1 << 20  # bytes


def sign_enclosed(content: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """The content with its signature, DER. Raises ErofsEdgeError if the signer fails."""
    inside = der.element(
        der.SEQUENCE, der.oid(OID_DATA), der.element(der.CONTEXT, der.element(der.OCTET_STRING, content))
    )
    return signed_data(content, signer, certificate, [inside, der.element(der.CONTEXT, certificate.der)])


def enclosed(raw: bytes, key: VerificationKey | None = None) -> bytes:
    """The content signed by `sign_enclosed`, or by openssl without attributes.

    Raises FormatError for any other form, VerificationError if the signature is not the key's; without a key the
    signature is not checked.
    """
    if len(raw) > SIZE_MAX:
        raise FormatError(f"signed data of more than {SIZE_MAX} bytes")
    outer = der.Reader(raw)
    info = outer.enter(der.SEQUENCE)
    outer.finish()
    info.expect(OID_SIGNED_DATA, "not CMS SignedData")
    data = info.enter(der.CONTEXT).enter(der.SEQUENCE)
    if data.number() not in (1, 3):
        raise FormatError("CMS SignedData of an unknown version")
    data.take(der.SET)
    inner = data.enter(der.SEQUENCE)
    inner.expect(OID_DATA, "the signed content is not plain data")
    content = inner.enter(der.CONTEXT).content(der.OCTET_STRING)
    if data.position < data.end and data.data[data.position] == der.CONTEXT:
        data.take(der.CONTEXT)
    signers = data.enter(der.SET)
    if key is not None and not any(_is_by(one, content, key) for one in _each(signers)):
        raise VerificationError(f"the signature does not match key '{key.name}'")
    return content


def _each(signers: der.Reader) -> list[der.Reader]:
    found = []
    while signers.position < signers.end:
        found.append(signers.enter(der.SEQUENCE))
    return found


def _is_by(one: der.Reader, content: bytes, key: VerificationKey) -> bool:
    """Whether a SignerInfo is the key's, directly over the content; one with attributes is not."""
    one.number()
    one.take(der.SEQUENCE)
    digest = one.enter(der.SEQUENCE)
    if digest.whole(der.OID) != der.oid(OID_SHA256):
        return False
    if one.take(der.SEQUENCE, der.CONTEXT).tag == der.CONTEXT:
        return False
    return verifies(key.public_key, one.content(der.OCTET_STRING), hashlib.sha256(content).digest())
