# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 SignedData with one signer and SHA-256 (RFC 2315; RFC 5652, which calls it CMS), in DER: what detached
signatures, signed text and signed PE files have in common."""

from __future__ import annotations

from collections.abc import Sequence

from erofs_edge.errors import FormatError
from erofs_edge.trust import der
from erofs_edge.trust.certificate import OID_SHA256, Certificate, signature_algorithm
from erofs_edge.trust.key import Signer, sign

OID_SIGNED_DATA = "1.2.840.113549.1.7.2"
OID_DATA = "1.2.840.113549.1.7.1"
SHA256 = der.element(der.SEQUENCE, der.oid(OID_SHA256), der.element(der.NULL))
"""AlgorithmIdentifier"""


def signed_data(
    signed: bytes, signer: Signer, certificate: Certificate, middle: Sequence[bytes], attributes: Sequence[bytes] = ()
) -> bytes:
    """Sign `signed`. `middle` is what goes between the digest algorithms and the signers: the content's information,
    then optional certificates. Raises ErofsEdgeError if the signer fails."""
    info = der.element(
        der.SEQUENCE,
        der.integer(1),
        der.element(der.SEQUENCE, certificate.issuer, der.integer(certificate.serial)),
        SHA256,
        *([der.element(der.CONTEXT, *attributes)] if attributes else []),
        signature_algorithm(signer.public_key),
        der.element(der.OCTET_STRING, sign(signer, signed)),
    )
    data = der.element(der.SEQUENCE, der.integer(1), der.element(der.SET, SHA256), *middle, der.element(der.SET, info))
    return der.element(der.SEQUENCE, der.oid(OID_SIGNED_DATA), der.element(der.CONTEXT, data))


def read_signed_data(raw: bytes, otherwise: str) -> der.Reader:
    """Read a SignedData up to and including its version. Raises FormatError, with `otherwise`, for anything else."""
    outer = der.Reader(raw)
    info = outer.enter(der.SEQUENCE)
    outer.finish()
    info.expect(OID_SIGNED_DATA, otherwise)
    wrapper = info.enter(der.CONTEXT)
    info.finish()
    data = wrapper.enter(der.SEQUENCE)
    wrapper.finish()
    if data.number() != 1:
        raise FormatError("PKCS#7 of an unknown version")
    return data


def read_signer(data: der.Reader) -> der.Reader:
    """The entry of a SignedData's only signer, after the version. Raises FormatError if there are others."""
    signers = data.enter(der.SET)
    data.finish()
    one = signers.enter(der.SEQUENCE)
    signers.finish()
    if one.number() != 1:
        raise FormatError("a PKCS#7 signer of an unknown version")
    return one
