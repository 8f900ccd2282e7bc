# SPDX-License-Identifier: Apache-2.0
"""Authenticode: the signature of a PE file, which UEFI firmware checks before it starts the file.

It is a PKCS#7 SignedData (RFC 2315) whose content, SpcIndirectDataContent, contains the SHA-256 of the file without its
checksum, the directory entry of the certificate table and the table itself. Sources: Microsoft's "Windows Authenticode
Portable Executable Signature Format", UEFI 2.10 section 32.2 (WIN_CERTIFICATE) and 32.5 (what firmware checks).

The bytes depend only on file, key and certificate: no time is signed.
"""

from __future__ import annotations

import hashlib
import struct

from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust import der, pe, pkcs7
from erofs_edge.trust.certificate import OID_SHA256, Certificate
from erofs_edge.trust.key import Signer, VerificationKey, rsa_key, verifies

OID_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
OID_PE_IMAGE = "1.3.6.1.4.1.311.2.1.15"
OID_CONTENT_TYPE = "1.2.840.113549.1.9.3"
OID_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
REVISION, PKCS_SIGNED_DATA = 0x0200, 0x0002
OTHERWISE = "not an Authenticode signature of a PE image with SHA-256"
UNIT = 8
"""bytes: alignment of the certificate table and of each entry in it"""
_ENTRY = struct.Struct("<IHH")
_OBSOLETE = "<<<Obsolete>>>".encode("utf-16-be")


def digest(data: bytes) -> bytes:
    """Authenticode's SHA-256 of a PE file; firmware measures the same into PCR 4. Raises FormatError."""
    view, image = memoryview(data), pe.parse(data)
    state = hashlib.sha256(view[: image.checksum])
    state.update(view[image.checksum + 4 : image.directory])
    state.update(view[image.directory + 8 : image.headers])
    done = image.headers
    for section in sorted((s for s in image.sections if s.stored), key=lambda section: section.offset):
        state.update(view[section.offset : section.offset + section.stored])
        done += section.stored
    end = len(data) - image.certificates[1]
    if done > end:
        raise FormatError("sections of a PE file overlap", where=f"offset {image.table:#x}")
    state.update(view[done:end])
    return state.digest()


def unsigned(data: bytes) -> bytes:
    """Remove a PE file's certificate table, pad to whole units, set the checksum to zero. Raises FormatError."""
    image = pe.parse(data)
    bare = bytearray(data[: image.certificates[0]] if image.certificates[1] else data)
    bare[image.checksum : image.checksum + 4] = bytes(4)
    bare[image.directory : image.directory + 8] = bytes(8)
    return bytes(bare + bytes(-len(bare) % UNIT))


def sign_image(data: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """Sign a PE file, replacing any signatures that it has.

    Raises FormatError if it is not a PE file, ErofsEdgeError for a key that is not RSA or if the signer fails.
    """
    rsa_key(signer, "UEFI firmware")
    bare = unsigned(data)
    image = pe.parse(bare)
    blob = signed_data(digest(bare), signer, certificate)
    blob += bytes(-len(blob) % UNIT)
    entry = _ENTRY.pack(_ENTRY.size + len(blob), REVISION, PKCS_SIGNED_DATA) + blob
    done = bytearray(bare + entry)
    struct.pack_into("<II", done, image.directory, len(bare), len(entry))
    struct.pack_into("<I", done, image.checksum, pe.checksum(bytes(done), image.checksum))
    return bytes(done)


def signed_data(sha256: bytes, signer: Signer, certificate: Certificate) -> bytes:
    """The PKCS#7 signature of a PE file's digest, DER, with the signer's certificate."""
    indirect = _indirect_data(sha256)
    attributes = _attributes(hashlib.sha256(indirect).digest())
    content = der.element(
        der.SEQUENCE, der.oid(OID_INDIRECT_DATA), der.element(der.CONTEXT, der.element(der.SEQUENCE, indirect))
    )
    middle = [content, der.element(der.CONTEXT, certificate.der)]
    return pkcs7.signed_data(_set_of(attributes), signer, certificate, middle, attributes)


def verify_image(data: bytes, key: VerificationKey) -> bytes:
    """The digest of a PE file signed by this key.

    Raises FormatError on a malformed file or signature, VerificationError if there is no signature, if it is another
    key's, or if the file has changed since.
    """
    rsa_key(key, "UEFI firmware")
    found, content_digest, content, signature = _parse(_certificate_entry(data))
    if found != digest(data):
        raise VerificationError("the file does not match the digest in its signature")
    if content_digest != hashlib.sha256(content).digest():
        raise VerificationError("the signature is of other content than it holds")
    if not verifies(key.public_key, signature, hashlib.sha256(_set_of(_attributes(content_digest))).digest()):
        raise VerificationError(f"the signature does not match key '{key.name}'")
    return found


def _certificate_entry(data: bytes) -> bytes:
    """The PKCS#7 signature in the only entry of the certificate table."""
    start, size = pe.parse(data).certificates
    if not size:
        raise VerificationError("the file is not signed")
    if start % UNIT or size < _ENTRY.size:
        raise FormatError("the certificate table is malformed", where=f"offset {start:#x}")
    length, revision, kind = _ENTRY.unpack_from(data, start)
    if length + -length % UNIT != size or (revision, kind) != (REVISION, PKCS_SIGNED_DATA):
        raise FormatError("not one PKCS#7 signature in the certificate table", where=f"offset {start:#x}")
    blob = data[start + _ENTRY.size : start + length]
    reader = der.Reader(blob)
    whole = reader.whole(der.SEQUENCE)
    if any(blob[reader.position :]):
        raise FormatError("bytes after the signature", where=f"offset {start:#x}")
    return whole


def _parse(raw: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """(digest of the file, digest of the content, content, signature), for the form that `signed_data` makes."""
    body = pkcs7.read_signed_data(raw, OTHERWISE)
    body.take(der.SET)
    outer = body.enter(der.SEQUENCE)
    _expect(outer, OID_INDIRECT_DATA)
    explicit = outer.enter(der.CONTEXT)
    content = explicit.content(der.SEQUENCE)
    body.take(der.CONTEXT)
    one = pkcs7.read_signer(body)
    one.take(der.SEQUENCE)
    _expect(one.enter(der.SEQUENCE), OID_SHA256)
    content_digest = _message_digest(one.enter(der.CONTEXT))
    one.take(der.SEQUENCE)
    signature = one.content(der.OCTET_STRING)
    one.finish()
    return _file_digest(content), content_digest, content, signature


def _file_digest(content: bytes) -> bytes:
    """The digest in an SpcIndirectDataContent."""
    reader = der.Reader(content)
    kind = reader.enter(der.SEQUENCE)
    _expect(kind, OID_PE_IMAGE)
    info = reader.enter(der.SEQUENCE)
    reader.finish()
    _expect(info.enter(der.SEQUENCE), OID_SHA256)
    found = info.content(der.OCTET_STRING)
    info.finish()
    return found


def _message_digest(attributes: der.Reader) -> bytes:
    """The digest of the content; the attributes must be the two that `signed_data` writes."""
    inner = attributes.data[attributes.position : attributes.end]
    last = der.Reader(inner)
    last.take(der.SEQUENCE)
    second = last.enter(der.SEQUENCE)
    last.finish()
    _expect(second, OID_MESSAGE_DIGEST)
    found = second.enter(der.SET).content(der.OCTET_STRING)
    if der.element(der.SET, inner) != _set_of(_attributes(found)):
        raise FormatError("attributes in the signature that are not known")
    return found


def _attributes(content_digest: bytes) -> list[bytes]:
    """The signed attributes; the digest is of the content without its tag and length (RFC 2315 section 9.3)."""
    return sorted(
        (
            _attribute(OID_CONTENT_TYPE, der.oid(OID_INDIRECT_DATA)),
            _attribute(OID_MESSAGE_DIGEST, der.element(der.OCTET_STRING, content_digest)),
        )
    )


def _set_of(attributes: list[bytes]) -> bytes:
    """Attributes are signed as a SET, not as the implicit element that contains it (RFC 2315 section 9.3)."""
    return der.element(der.SET, *attributes)


def _indirect_data(sha256: bytes) -> bytes:
    """The content of SpcIndirectDataContent for a PE image without page hashes."""
    link = der.element(der.CONTEXT | 2, der.element(0x80, _OBSOLETE))
    image = der.element(
        der.SEQUENCE, der.element(der.BIT_STRING, b"\0"), der.element(der.CONTEXT, link)
    )  # fmt: skip
    kind = der.element(der.SEQUENCE, der.oid(OID_PE_IMAGE), image)
    return kind + der.element(der.SEQUENCE, pkcs7.SHA256, der.element(der.OCTET_STRING, sha256))


def _attribute(oid: str, value: bytes) -> bytes:
    return der.element(der.SEQUENCE, der.oid(oid), der.element(der.SET, value))


def _expect(reader: der.Reader, dotted: str) -> None:
    reader.expect(dotted, OTHERWISE)
