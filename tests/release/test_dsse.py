# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes: golden bytes, the reference libraries as readers and writers, hostile input."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.json_format import Parse
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1.statement import Statement as Reference
from in_toto_attestation.v1.statement_pb2 import Statement as Protobuf
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.trust.dsse import PAYLOAD_TYPE, Statement, add_signature, pre_authentication, seal, unseal
from erofs_edge.trust.key import KeySigner, PublicKey

STATEMENT = Statement("https://slsa.dev/provenance/v1", {"b": "22" * 32, "a": "11" * 32}, {"x": [1, "y"]})


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def signer(request: pytest.FixtureRequest) -> KeySigner:
    if request.param == "rsa":
        return KeySigner("k", rsa.generate_private_key(65537, 2048))
    return KeySigner("k", ec.generate_private_key(ec.SECP256R1()))


def test_golden() -> None:
    """The example of the DSSE protocol's specification."""
    encoded = pre_authentication(b"hello world", "http://example.com/HelloWorld")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_round_trip_and_the_same_twice(signer: KeySigner) -> None:
    envelope = seal(STATEMENT, signer)
    assert envelope == seal(STATEMENT, signer)
    assert unseal(envelope, signer) == STATEMENT


def scheme(signer: KeySigner) -> str:
    return "rsa-pkcs1v15-sha256" if isinstance(signer.key, rsa.RSAPrivateKey) else "ecdsa-sha2-nistp256"


def test_the_reference_libraries_read_ours(signer: KeySigner) -> None:
    envelope = Envelope.from_dict(json.loads(seal(STATEMENT, signer)))
    key = SSlibKey.from_crypto(signer.public_key, keyid=next(iter(envelope.signatures)), scheme=scheme(signer))
    assert list(envelope.verify([key], 1)) == [key.keyid]
    Reference.copy_from_pb(Parse(envelope.payload, Protobuf())).validate()


def test_we_read_those_of_the_reference(signer: KeySigner) -> None:
    envelope = Envelope(STATEMENT.encode(), PAYLOAD_TYPE, {})
    key = SSlibKey.from_crypto(signer.public_key, keyid="k", scheme=scheme(signer))
    envelope.sign(CryptoSigner(signer.key, key))
    assert unseal(json.dumps(envelope.to_dict()).encode(), signer) == STATEMENT


def test_several_agree(signer: KeySigner) -> None:
    other = KeySigner("other", ec.generate_private_key(ec.SECP256R1()))

    def same(said: Statement) -> bool:
        return said == STATEMENT

    both = add_signature(add_signature(seal(STATEMENT, signer), other, same), other, same)
    assert len(json.loads(both)["signatures"]) == 2
    assert unseal(both, other) == unseal(both, signer) == STATEMENT
    with pytest.raises(VerificationError, match="another statement"):
        add_signature(both, other, lambda said: said != STATEMENT)


def test_wrong_key_and_changed_bytes(signer: KeySigner) -> None:
    envelope = seal(STATEMENT, signer)
    stranger = PublicKey("stranger", ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(VerificationError, match="by 'stranger'"):
        unseal(envelope, stranger)
    value = json.loads(envelope)
    payload = base64.b64decode(value["payload"]).replace(b"11" * 32, b"33" * 32)
    value["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(VerificationError):
        unseal(json.dumps(value).encode(), signer)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"payload": "?"},
        {"signatures": {}},
        {"signatures": [{}]},
        {"signatures": [{"sig": "AAAA"}] * 65},
    ],
)
def test_hostile_envelopes(signer: KeySigner, change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        unseal(json.dumps(json.loads(seal(STATEMENT, signer)) | change).encode(), signer)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    key = PublicKey("k", ec.derive_private_key(7, ec.SECP256R1()).public_key())
    with pytest.raises((FormatError, VerificationError)):
        unseal(data, key)


@pytest.mark.parametrize("payload", [b"{}", b"[]", b'{"_type": "x"}', b"\xff"])
def test_signed_but_no_statement(signer: KeySigner, payload: bytes) -> None:
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(signer.key, SSlibKey.from_crypto(signer.public_key, keyid="k", scheme=scheme(signer))))
    with pytest.raises(FormatError):
        unseal(json.dumps(envelope.to_dict()).encode(), signer)
