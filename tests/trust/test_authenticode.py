# SPDX-License-Identifier: Apache-2.0
"""Signatures of PE files: three programs that check them agree, and so do we with what they sign; hostile files."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fixed_key import fixed_key
from hypothesis import given
from hypothesis import strategies as st
from pe_sample import pe_file

from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import digest, sign_image, unsigned, verify_image
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner

EPOCH = 1_700_000_000
SAMPLE = pe_file({".text": b"code" * 300, ".linux": bytes(range(256)) * 5})
OTHER = KeySigner("fixed", rsa.generate_private_key(65537, 2048))
SIGNED = sign_image(SAMPLE, fixed_key(), self_signed(fixed_key(), EPOCH))
# the form itself: any change to it must be meant
SIGNED_SHA256 = "7a0f8f27606d6bf9b2a375b15ed71b41fa3f7fd7ceba5e3e239672ee40b5a234"


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_form_is_fixed() -> None:
    assert hashlib.sha256(SIGNED).hexdigest() == SIGNED_SHA256
    assert verify_image(SIGNED, fixed_key()) == digest(SAMPLE) == digest(SIGNED)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_other_programs_accept_it(bits: int, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    signer = KeySigner("product", rsa.generate_private_key(65537, bits))
    certificate = self_signed(signer, EPOCH)
    image, pem = tmp_path / "image.efi", tmp_path / "cert.pem"
    image.write_bytes(sign_image(SAMPLE, signer, certificate))
    pem.write_bytes(certificate.pem)
    assert "Signature verification OK" in run(oracle("sbverify"), "--cert", pem, image)
    told = run(oracle("osslsigncode"), "verify", "-CAfile", pem, "-in", image)
    assert f"Calculated message digest : {digest(SAMPLE).hex().upper()}" in told
    assert "mismatch" not in told.lower()
    assert digest(SAMPLE).hex() in run(oracle("pesign"), "-h", "-i", image)
    assert "CN=product" in run(oracle("sbverify"), "--list", image)


def test_what_sbsign_signs_has_our_digest(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    certificate = self_signed(fixed_key(), EPOCH)
    (tmp_path / "key.pem").write_bytes(fixed_key().key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert.pem").write_bytes(certificate.pem)
    (tmp_path / "bare.efi").write_bytes(SAMPLE)
    out = tmp_path / "signed.efi"
    run(
        oracle("sbsign"), "--key", tmp_path / "key.pem", "--cert", tmp_path / "cert.pem", "--output", out,
        tmp_path / "bare.efi",
    )  # fmt: skip
    theirs = out.read_bytes()
    assert digest(theirs) == digest(SAMPLE)
    # a signature of theirs is taken off, whatever it holds, and ours put in its place
    assert sign_image(theirs, fixed_key(), certificate) == SIGNED
    assert unsigned(theirs) == unsigned(SAMPLE)


def test_the_checksum_is_that_of_the_file() -> None:
    image = pe.parse(SIGNED)
    (stored,) = struct.unpack_from("<I", SIGNED, image.checksum)
    assert stored == pe.checksum(SIGNED, image.checksum) != 0


def test_any_other_file_or_key_is_refused() -> None:
    with pytest.raises(VerificationError, match="not signed"):
        verify_image(SAMPLE, fixed_key())
    with pytest.raises(VerificationError, match="does not match key 'fixed'"):
        verify_image(SIGNED, OTHER)
    with pytest.raises(ErofsEdgeError, match="not an RSA key"):
        ecdsa = KeySigner("curve", ec.generate_private_key(ec.SECP256R1()))
        sign_image(SAMPLE, ecdsa, self_signed(ecdsa, EPOCH))


def test_a_flipped_bit_anywhere_is_found() -> None:
    image, certificate = pe.parse(SIGNED), self_signed(fixed_key(), EPOCH)
    start, size = image.certificates
    hint = SIGNED.find(certificate.der, start)
    # not looked at: the checksum, the certificate and its name (the key is given), what fills up the last unit
    free = {*range(image.checksum, image.checksum + 4), *range(start + size - 8, start + size)}
    free |= set(range(hint - 4, hint + len(certificate.der) + len(certificate.issuer) + 40))
    places = set(range(0, len(SIGNED), 61)) - free
    assert len(places) > 60
    for place in places:
        raw = bytearray(SIGNED)
        raw[place] ^= 0x20
        with pytest.raises((FormatError, VerificationError)):
            verify_image(bytes(raw), fixed_key())


@given(st.data())
def test_hostile_files_are_refused_quickly(data: st.DataObject) -> None:
    raw = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.sampled_from([*range(0x3C, 0x200), *range(len(SAMPLE), len(SIGNED))]))] = data.draw(
            st.integers(0, 255)
        )
    cut = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, 1100, 300, 90, 2]))])
    try:
        found = verify_image(cut, fixed_key())
    except ErofsEdgeError:
        return
    assert found == digest(SAMPLE)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0x40, b"XX", "not a PE file"), (0x46, struct.pack("<H", 97), "97 sections"), (0x58, b"\x0b\x01", "PE32"),
     (0x58 + 60, struct.pack("<I", 1 << 30), "sections"), (0x58 + 32, struct.pack("<I", 3), "alignment"),
     (0x58 + 144, struct.pack("<II", 1200, 8), "certificate table"), (0x58 + 108, struct.pack("<I", 4), "room")],
)  # fmt: skip
def test_malformed_headers(at: int, value: bytes, message: str) -> None:
    raw = bytearray(SAMPLE)
    raw[at : at + len(value)] = value
    with pytest.raises(FormatError, match=message):
        digest(bytes(raw))
