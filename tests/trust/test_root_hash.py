# SPDX-License-Identifier: Apache-2.0
"""Root hashes signed as kernel and systemd want them: openssl's bytes, openssl's verdict, and hostile input."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fixed_key import fixed_key
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.trust.certificate import Certificate, check_validity, load_certificate, read_certificate, self_signed
from erofs_edge.trust.key import KeySigner, PublicKey
from erofs_edge.trust.root_hash import (
    PARTITION_SIZE,
    parse_detached,
    parse_verity_signature,
    sign_root_hash,
    verify_root_hash,
    verify_verity_signature,
    verity_signature_json,
)

ROOT = hashlib.sha256(b"root").digest()
EPOCH = 1_700_000_000
KEYS = {
    "rsa2048": KeySigner("product", rsa.generate_private_key(65537, 2048)),
    "rsa4096": KeySigner("product", rsa.generate_private_key(65537, 4096)),
    "ecdsa": KeySigner("product", ec.generate_private_key(ec.SECP256R1())),
}
OTHER = KeySigner("other", rsa.generate_private_key(65537, 2048))
# not random: the form itself is guarded by one fixed key
FIXED_CERTIFICATE_SHA256 = "562c794bdad4200ac41c0bb758bbb3fcafe8721c5ed4e4aa4284559d682f0cc8"
FIXED_SIGNATURE_SHA256 = "a37c56990810c161aef8c3d5cfdf7f150ab7d9b574e1ddcb908b92725db15960"


@pytest.fixture(scope="module", params=KEYS)
def signer(request: pytest.FixtureRequest) -> KeySigner:
    return KEYS[request.param]


@pytest.fixture(scope="module")
def certificate(signer: KeySigner) -> Certificate:
    return self_signed(signer, EPOCH)


def write(folder: Path, signer: KeySigner, certificate: Certificate) -> None:
    pem = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    (folder / "crt.pem").write_bytes(certificate.pem)
    (folder / "rh.txt").write_text(ROOT.hex())


def test_openssl_verifies_it(
    signer: KeySigner, certificate: Certificate, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    write(tmp_path, signer, certificate)
    (tmp_path / "rh.p7s").write_bytes(sign_root_hash(ROOT, signer, certificate))
    command = [
        oracle("openssl"), "cms", "-verify", "-binary", "-inform", "der", "-in", "rh.p7s", "-content", "rh.txt",
        "-certfile", "crt.pem", "-CAfile", "crt.pem", "-attime", str(EPOCH + 1), "-purpose", "any",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ROOT.hex().encode()
    (tmp_path / "rh.txt").write_text(hashlib.sha256(b"another").hexdigest())
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_rsa_signatures_are_those_of_openssl(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    signer = KEYS["rsa2048"]
    certificate = self_signed(signer, EPOCH)
    write(tmp_path, signer, certificate)
    command = [
        oracle("openssl"), "smime", "-sign", "-nocerts", "-noattr", "-binary", "-in", "rh.txt", "-inkey", "key.pem",
        "-signer", "crt.pem", "-outform", "der", "-md", "sha256",
    ]  # fmt: skip
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert theirs == sign_root_hash(ROOT, signer, certificate)


def test_bytes_depend_on_key_and_date_alone() -> None:
    signer = fixed_key()
    certificate = self_signed(signer, EPOCH)
    assert hashlib.sha256(certificate.der).hexdigest() == FIXED_CERTIFICATE_SHA256
    assert hashlib.sha256(sign_root_hash(ROOT, signer, certificate)).hexdigest() == FIXED_SIGNATURE_SHA256
    assert self_signed(signer, EPOCH + 1).der != certificate.der


def test_certificate_says_what_it_is(signer: KeySigner, certificate: Certificate) -> None:
    theirs = x509.load_der_x509_certificate(certificate.der)
    theirs.verify_directly_issued_by(theirs)
    assert theirs.subject.rfc4514_string() == "CN=product"
    assert int(theirs.not_valid_before_utc.timestamp()) == EPOCH == certificate.not_before
    assert theirs.not_valid_after_utc.year == 9999
    assert not theirs.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert theirs.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert load_certificate(certificate.pem, "product") == certificate
    assert load_certificate(certificate.der, "product").fingerprint == hashlib.sha256(certificate.der).hexdigest()


def test_systemd_reads_this_partition(signer: KeySigner, certificate: Certificate) -> None:
    raw = verity_signature_json(ROOT, signer, certificate)
    text, _, rest = raw.partition(b"\0")
    assert len(raw) == PARTITION_SIZE and not any(rest)
    record = json.loads(text)
    assert set(record) == {"rootHash", "certificateFingerprint", "signature"}
    assert record["rootHash"] == ROOT.hex()
    assert record["certificateFingerprint"] == hashlib.sha256(certificate.der).hexdigest()
    verify_root_hash(base64.b64decode(record["signature"]), ROOT, signer)
    verify_verity_signature(raw, ROOT, signer)


def test_any_other_hash_or_key_is_refused(signer: KeySigner, certificate: Certificate) -> None:
    other_root = hashlib.sha256(b"other").digest()
    signature = sign_root_hash(ROOT, signer, certificate)
    raw = verity_signature_json(ROOT, signer, certificate)
    verify_root_hash(signature, ROOT, signer)
    for root, key in ((other_root, signer), (ROOT, OTHER)):
        with pytest.raises(VerificationError):
            verify_root_hash(signature, root, key)
        with pytest.raises(VerificationError):
            verify_verity_signature(raw, root, key)


def test_a_signature_with_certificates_or_of_openssl_is_read(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    signer = KEYS["rsa2048"]
    write(tmp_path, signer, self_signed(signer, EPOCH))
    command = [
        oracle("openssl"), "cms", "-sign", "-noattr", "-binary", "-in", "rh.txt", "-inkey", "key.pem", "-signer",
        "crt.pem", "-outform", "der", "-md", "sha256",
    ]  # fmt: skip
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    verify_root_hash(theirs, ROOT, signer)
    with pytest.raises(FormatError):  # attributes: what is signed is not the root hash then
        parse_detached(
            subprocess.run([c for c in command if c != "-noattr"], cwd=tmp_path, capture_output=True, check=True).stdout
        )


def test_certificates_of_other_keys_and_times_are_refused(tmp_path: Path) -> None:
    certificate = self_signed(OTHER, EPOCH)
    path = tmp_path / "crt.pem"
    path.write_bytes(certificate.pem)
    assert read_certificate(path, OTHER, EPOCH) == certificate
    with pytest.raises(ErofsEdgeError, match="not valid before 2023-11-14"):
        read_certificate(path, OTHER, EPOCH - 1)
    with pytest.raises(ErofsEdgeError, match="does not belong to key 'product'"):
        read_certificate(path, KEYS["rsa2048"], EPOCH)
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ErofsEdgeError, match=r"not an X\.509 certificate") as caught:
        read_certificate(path, OTHER, EPOCH)
    assert caught.value.where == str(path)
    short = Certificate(b"", b"", 1, PublicKey("x", OTHER.public_key), 0, EPOCH)
    with pytest.raises(ErofsEdgeError, match="expired"):
        check_validity(short, EPOCH + 1)


def test_every_byte_of_a_signature_counts() -> None:
    signer = KEYS["rsa2048"]
    good = sign_root_hash(ROOT, signer, self_signed(signer, EPOCH))
    parsed = parse_detached(good)
    rng = random.Random(5)
    for at in rng.sample(range(len(good)), 120):
        broken = bytearray(good)
        broken[at] ^= 1 << rng.randrange(8)
        try:
            found = parse_detached(bytes(broken))
        except FormatError:
            continue
        if found.signature == parsed.signature:  # issuer, serial and the name of the algorithm are not signed
            continue
        with pytest.raises(VerificationError):
            verify_root_hash(bytes(broken), ROOT, signer)
    for end in range(0, len(good), 7):
        with pytest.raises(FormatError):
            parse_detached(good[:end])
    with pytest.raises(FormatError):
        parse_detached(good + b"\0")


@given(st.binary(max_size=300))
def test_garbage_is_a_format_error(raw: bytes) -> None:
    for parse in (parse_detached, parse_verity_signature):
        with pytest.raises(FormatError):
            parse(raw)


@pytest.mark.parametrize(
    "text",
    [
        b"{}", b"[]", b"[" * 5000, b'{"rootHash":1,"signature":""}', b'{"rootHash":"zz","signature":""}',
        b'{"rootHash":"","signature":""}', b'{"rootHash":"aa","signature":"!"}',
        b'{"rootHash":"aa","signature":"","certificateFingerprint":1}', b'{"rootHash":"aa","signature":""}\0x', b"\xff",
    ],
)  # fmt: skip
def test_bad_json_is_a_format_error(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_verity_signature(text)
