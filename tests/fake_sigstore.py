# SPDX-License-Identifier: Apache-2.0
"""A Sigstore for the tests: a certificate authority, a certificate log, a signature log, and a signer."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from erofs_edge.trust.sigstore import Policy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
IDENTITY, ISSUER = "releases@example.com", "https://login.example"
ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def log_id(key: Key) -> bytes:
    return hashlib.sha256(spki(key)).digest()


def signed(key: Key, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(SHA256()))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def node(left: bytes, right: bytes) -> bytes:
    """Hash an inner node (RFC 6962)."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass
class FakeSigstore:
    """`sign` makes bundles, `policy` is what they are checked with."""

    authority: Key = field(default_factory=new_key)
    certificates: Key = field(default_factory=new_key)
    log: Key = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake authority")])
        self.root = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.authority.public_key())
            .serial_number(1)
            .not_valid_before(NOW - timedelta(days=9))
            .not_valid_after(NOW + timedelta(days=9000))
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(_usage(certificates=True), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), False)
            .sign(self.authority, SHA256())
        )

    def policy(self, identity: str = IDENTITY, issuer: str = ISSUER) -> Policy:
        """Return a policy: whose bundles count, in this Sigstore."""
        span = {"start": "2020-01-01T00:00:00Z"}

        def log(key: Key, name: str) -> dict[str, Any]:
            public = {"rawBytes": b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": span}
            return {
                "baseUrl": f"https://{name}.example", "hashAlgorithm": "SHA2_256", "publicKey": public,
                "logId": {"keyId": b64(log_id(key))},
            }  # fmt: skip

        authority = {
            "subject": {"organization": "fake", "commonName": "fake authority"}, "uri": "https://authority.example",
            "certChain": {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]}, "validFor": span,
        }  # fmt: skip
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log, "log")], "ctlogs": [log(self.certificates, "certificates")],
            "certificateAuthorities": [authority], "timestampAuthorities": [],
        }  # fmt: skip
        return Policy(identity, issuer, root)

    def certificate(self, key: Key, identity: str, issuer: str, start: datetime) -> x509.Certificate:
        """Return a certificate valid for ten minutes, with the certificate log's statement that it is included."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(start)
            .not_valid_after(start + timedelta(minutes=10))
            .add_extension(_usage(), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), False)
            .add_extension(x509.UnrecognizedExtension(ISSUER_OID, issuer.encode()), False)
        )
        early = builder.sign(self.authority, SHA256()).tbs_certificate_bytes
        moment = struct.pack(">Q", int(start.timestamp() * 1000))
        entry = log_id(self.authority) + len(early).to_bytes(3, "big") + early
        signature = signed(self.certificates, b"\0\0" + moment + b"\0\1" + entry + b"\0\0")
        one = b"\0" + log_id(self.certificates) + moment + b"\0\0" + b"\4\3" + struct.pack(">H", len(signature))
        one += signature
        listed = struct.pack(">HH", len(one) + 2, len(one)) + one
        raw = b"\4" + _der_length(len(listed)) + listed
        return builder.add_extension(x509.UnrecognizedExtension(SCT_OID, raw), False).sign(self.authority, SHA256())

    def sign(
        self,
        data: bytes,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        *,
        at: datetime = NOW + timedelta(seconds=20),
        others: Sequence[bytes] = (b"first", b"second"),
    ) -> dict[str, Any]:
        """Return a bundle (0.3). `at`: when the log received the signature; `others`: entries before it."""
        key, digest = new_key(), hashlib.sha256(data)
        certificate = self.certificate(key, identity, issuer, NOW)
        signature = signed(key, data)
        body = canonical({
            "apiVersion": "0.0.1", "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                "signature": {
                    "content": b64(signature), "publicKey": {"content": b64(certificate.public_bytes(Encoding.PEM))},
                },
            },
        })  # fmt: skip
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [self.entry(body, int(at.timestamp()), others)],
            },
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest.digest())},
                "signature": b64(signature),
            },
        }

    def entry(self, body: bytes, at: int, others: Sequence[bytes]) -> dict[str, Any]:
        """Return the log's promise and its proof that a body is included after two others."""
        leaves = [hashlib.sha256(b"\0" + one).digest() for one in (*others, body)]
        path = [node(leaves[0], leaves[1])]
        root, size = node(path[0], leaves[2]), len(leaves)
        note = f"log.example - 1\n{size}\n{b64(root)}\n"
        checkpoint = f"{note}\n\u2014 log.example {b64(log_id(self.log)[:4] + signed(self.log, note.encode()))}\n"
        index = size - 1
        promise = {"body": b64(body), "integratedTime": at, "logID": log_id(self.log).hex(), "logIndex": index}
        return {
            "logIndex": str(index), "logId": {"keyId": b64(log_id(self.log))},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"}, "integratedTime": str(at),
            "inclusionPromise": {"signedEntryTimestamp": b64(signed(self.log, canonical(promise)))},
            "inclusionProof": {
                "logIndex": str(index), "rootHash": b64(root), "treeSize": str(size), "hashes": [b64(h) for h in path],
                "checkpoint": {"envelope": checkpoint},
            },
            "canonicalizedBody": b64(body),
        }  # fmt: skip


def _usage(*, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        not certificates, False, False, False, False, certificates, certificates, False, False
    )  # fmt: skip


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    raw = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(raw)]) + raw
