# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles: what a made-up Sigstore signs holds, and nothing else does; and the bundle of a public release."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
import socket
from collections.abc import Callable
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from fake_sigstore import IDENTITY, ISSUER, ISSUER_OID, NOW, FakeSigstore, b64, canonical, signed

from erofs_edge.errors import ErofsEdgeError, FormatError, SourceError, VerificationError
from erofs_edge.trust.sigstore import BUNDLE_MAX, Policy, check_bundle, check_root, parse_policy, read_policy

DATA = b'{"board": "lab"}\n'
CASES = 60
Bundle = dict[str, Any]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of anybody."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def fake() -> FakeSigstore:
    return FakeSigstore()


@pytest.fixture(scope="module")
def good(fake: FakeSigstore) -> Bundle:
    return fake.sign(DATA)


def check(bundle: Bundle, policy: Policy, data: bytes = DATA) -> Any:
    return check_bundle(json.dumps(bundle).encode(), data, policy)


def test_a_bundle_holds(fake: FakeSigstore, good: Bundle) -> None:
    seen = check(good, fake.policy())
    assert (seen.identity, seen.issuer, seen.index) == (IDENTITY, ISSUER, 2)
    assert seen.time == NOW + timedelta(seconds=20)


def test_of_something_or_somebody_else(fake: FakeSigstore, good: Bundle) -> None:
    with pytest.raises(VerificationError, match="does not verify"):
        check(good, fake.policy(), DATA + b" ")
    with pytest.raises(VerificationError, match=r"does not verify.*(SAN|identity)"):
        check(good, fake.policy(identity="other@example.com"))
    with pytest.raises(VerificationError, match="does not verify"):
        check(good, fake.policy(issuer="https://other.example"))
    with pytest.raises(VerificationError, match="does not verify"):
        check(good, FakeSigstore().policy())


@pytest.mark.parametrize("part", ["authority", "certificates", "log"])
def test_each_key_of_the_root_counts(fake: FakeSigstore, good: Bundle, part: str) -> None:
    """With one of them another's, the bundle is not proved."""
    keys = {name: getattr(fake, name) for name in ("authority", "certificates", "log")}
    other = FakeSigstore(**(keys | {part: getattr(FakeSigstore(), part)}))
    with pytest.raises(VerificationError, match="does not verify"):
        check(good, other.policy())


def test_a_signature_after_its_certificate(fake: FakeSigstore) -> None:
    for minutes in (-5, 11):
        with pytest.raises(VerificationError, match="does not verify"):
            check(fake.sign(DATA, at=NOW + timedelta(minutes=minutes)), fake.policy())


def _flip(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[-1] ^= 1
    return b64(bytes(raw))


def _entry(bundle: Bundle) -> dict[str, Any]:
    entry: dict[str, Any] = bundle["verificationMaterial"]["tlogEntries"][0]
    return entry


def _proof_hash(bundle: Bundle, fake: FakeSigstore) -> None:
    proof = _entry(bundle)["inclusionProof"]
    proof["hashes"][0] = _flip(proof["hashes"][0])


def _proof_root(bundle: Bundle, fake: FakeSigstore) -> None:
    proof = _entry(bundle)["inclusionProof"]
    proof["rootHash"] = _flip(proof["rootHash"])


def _proof_index(bundle: Bundle, fake: FakeSigstore) -> None:
    _entry(bundle)["inclusionProof"]["logIndex"] = "1"


def _proof_missing(bundle: Bundle, fake: FakeSigstore) -> None:
    del _entry(bundle)["inclusionProof"]


def _checkpoint(bundle: Bundle, fake: FakeSigstore) -> None:
    """The log's word over another root of the tree."""
    point = _entry(bundle)["inclusionProof"]["checkpoint"]
    point["envelope"] = point["envelope"].replace("\n3\n", "\n4\n")


def _promise(bundle: Bundle, fake: FakeSigstore) -> None:
    promise = _entry(bundle)["inclusionPromise"]
    promise["signedEntryTimestamp"] = b64(signed(FakeSigstore().log, b"x"))


def _other_entry(bundle: Bundle, fake: FakeSigstore) -> None:
    """A good entry of the log, of another signature."""
    bundle["verificationMaterial"]["tlogEntries"] = fake.sign(b"else")["verificationMaterial"]["tlogEntries"]


def _no_entry(bundle: Bundle, fake: FakeSigstore) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def _signature(bundle: Bundle, fake: FakeSigstore) -> None:
    bundle["messageSignature"]["signature"] = b64(signed(fake.log, DATA))


def _certificate(bundle: Bundle, fake: FakeSigstore) -> None:
    """The certificate of another signature of the same somebody."""
    bundle["verificationMaterial"]["certificate"] = fake.sign(DATA)["verificationMaterial"]["certificate"]


@pytest.mark.parametrize(
    "spoil",
    [
        _proof_hash, _proof_root, _proof_index, _proof_missing, _checkpoint, _promise, _other_entry, _no_entry,
        _signature, _certificate,
    ],
)  # fmt: skip
def test_what_is_broken(fake: FakeSigstore, good: Bundle, spoil: Callable[[Bundle, FakeSigstore], None]) -> None:
    bundle = copy.deepcopy(good)
    spoil(bundle, fake)
    with pytest.raises(VerificationError):
        check(bundle, fake.policy())


def test_bundles_that_are_none(fake: FakeSigstore, good: Bundle) -> None:
    """Cut, made up, or changed at random from fixed seeds: an error of ours, or it says what it said."""
    policy, whole = fake.policy(), canonical(good)
    for raw in (b"", b"{}", b"[]", b"null", b"\xff", b"[" * 5000, whole[:-1], b" " * (BUNDLE_MAX + 1)):
        with pytest.raises(VerificationError):
            check_bundle(raw, DATA, policy)
    for seed in range(CASES):
        rng, value = random.Random(seed), copy.deepcopy(good)
        place: Any = value
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.1:
                break
            place = place[key]
        place[key] = rng.choice([None, -1, 10**30, "", "AAAA", [], {}, True, 0.5, [{}], "\ud800"])
        with contextlib.suppress(ErofsEdgeError):
            assert check(value, policy).identity == IDENTITY


def test_policies(fake: FakeSigstore, tmp_path: Path) -> None:
    policy, path = fake.policy(), tmp_path / "policy.json"
    path.write_bytes(policy.encode())
    assert read_policy(path) == policy and parse_policy(policy.encode()).encode() == policy.encode()
    check_root(policy)
    for raw in (b"", b"[]", b"{}", b"\xff", b"[" * 5000, policy.encode().replace(b"issuer", b"issue")):
        with pytest.raises(FormatError, match="not a policy"):
            parse_policy(raw)
    wrong: list[dict[str, Any]] = [{"identity": ""}, {"issuer": 1}, {"trusted_root": []}, {"more": 1}]
    for change in wrong:
        with pytest.raises(FormatError, match="not a policy"):
            parse_policy(json.dumps(json.loads(policy.encode()) | change).encode())
    with pytest.raises(SourceError):
        read_policy(tmp_path / "none")
    for root in ({}, {"mediaType": 1}, policy.trusted_root | {"tlogs": []}):
        with pytest.raises(FormatError, match="not a trusted root"):
            check_root(Policy(IDENTITY, ISSUER, root))


def test_a_public_release() -> None:
    """The wheel of rfc8785 0.1.2, signed by the workflow that made it, in the public Sigstore. That one's root is what
    the library brings, whose name is in the certificate, and the digest stands for the wheel."""
    from sigstore.hashes import Hashed
    from sigstore.models import Bundle as Read
    from sigstore_models.common.v1 import HashAlgorithm

    raw = (Path(__file__).parent / "data/rfc8785-0.1.2.sigstore.json").read_bytes()
    certificate = Read.from_json(raw).signing_certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (identity,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    issuer = certificate.extensions.get_extension_for_oid(ISSUER_OID).value
    assert isinstance(issuer, x509.UnrecognizedExtension)
    words = {"identity": identity, "issuer": issuer.value.decode()}
    digest = base64.b64decode(json.loads(raw)["messageSignature"]["messageDigest"]["digest"])
    wheel: Any = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=digest)
    held = []
    for root in (json.loads(path.read_bytes()) for path in _stored_roots()):
        with contextlib.suppress(VerificationError):
            held.append(check_bundle(raw, wheel, Policy(**words, trusted_root=root)))
        for other in ({"identity": "x@example.com"}, {"issuer": "https://x.example"}):
            with pytest.raises(VerificationError):
                check_bundle(raw, wheel, Policy(**(words | other), trusted_root=root))
    assert [(one.index, one.time.isoformat()) for one in held] == [(79605083, "2024-03-19T22:41:16+00:00")]


def _stored_roots() -> list[Any]:
    """Of the public Sigstore and of the one that it is tried out with."""
    folders = [path for path in (files("sigstore") / "_store").iterdir() if path.is_dir()]
    return [path for folder in folders for path in folder.iterdir() if path.name == "trusted_root.json"]
