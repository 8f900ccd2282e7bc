# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from sources.debian.configure.made import link_of, text_of, tree_with

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.certificates import subject_hash, update_certificates

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
DAY = datetime.datetime(2024, 1, 1)
SUBJECTS = [
    [("C", "DE", _ASN1Type.PrintableString), ("O", "  Two   Words ", None), ("CN", "MiXed Case", None)],
    [("CN", "Ünïcode ß Straße", None)],
    [("CN", "AS BMP \u20ac", _ASN1Type.BMPString), ("O", "ia5@Example", _ASN1Type.IA5String)],
    [("CN", "x" * 60 + " Y", None), ("O", "z" * 64, None), ("OU", "long " * 12, None)],
    [],
]
OIDS = {"C": NameOID.COUNTRY_NAME, "O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME,
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME}  # fmt: skip


def certificate(subject: list[tuple[str, str, _ASN1Type | None]], *, joined: bool = False) -> bytes:
    attributes = [x509.NameAttribute(OIDS[key], value, kind) for key, value, kind in subject]
    rdns = [x509.RelativeDistinguishedName(attributes)] if joined else None
    name = x509.Name(rdns if rdns is not None else attributes)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(x509.Name([])).public_key(KEY.public_key())
    built = builder.serial_number(7).not_valid_before(DAY).not_valid_after(DAY).sign(KEY, None)
    return built.public_bytes(Encoding.PEM)


@pytest.mark.oracle
@pytest.mark.parametrize("joined", [False, True])
def test_subject_hashes_are_those_of_openssl(oracle: Callable[[str], str], tmp_path: Path, joined: bool) -> None:
    for subject in SUBJECTS if not joined else SUBJECTS[:1] + SUBJECTS[2:4]:
        pem = certificate(subject, joined=joined)
        (tmp_path / "c.pem").write_bytes(pem)
        command = [oracle("openssl"), "x509", "-noout", "-subject_hash", "-in", str(tmp_path / "c.pem")]
        assert (
            subject_hash(pem, "c") == subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        )


def test_links_hashes_and_bundle() -> None:
    one, two = certificate([("CN", "Same", None)]), certificate([("CN", "sAME ", None)])
    tree = tree_with(
        {
            "usr/share/ca-certificates/mozilla/B_(x).crt": one,
            "usr/share/ca-certificates/mozilla/A, b.crt": two.rstrip(b"\n"),
            "usr/share/ca-certificates/mozilla/readme.txt": b"",
            "usr/local/share/ca-certificates/own.crt": one,
        }
    )
    update_certificates(tree)
    mozilla = "/usr/share/ca-certificates/mozilla"
    assert link_of(tree, "etc/ssl/certs/A__b.pem") == f"{mozilla}/A, b.crt"
    assert link_of(tree, "etc/ssl/certs/B_=x=.pem") == f"{mozilla}/B_(x).crt"
    assert link_of(tree, "etc/ssl/certs/own.pem") == "/usr/local/share/ca-certificates/own.crt"
    digest = subject_hash(one, "")
    hashes = [link_of(tree, f"etc/ssl/certs/{digest}.{n}") for n in range(4)]
    assert hashes == ["A__b.pem", "B_=x=.pem", "own.pem", None]
    assert text_of(tree, "etc/ssl/certs/ca-certificates.crt") == (two + one + one).decode()
    assert text_of(tree, "etc/ca-certificates.conf") == "mozilla/A, b.crt\nmozilla/B_(x).crt\n"


def test_a_list_that_is_there_chooses() -> None:
    one, two = certificate([("CN", "1", None)]), certificate([("CN", "2", None)])
    tree = tree_with(
        {
            "usr/share/ca-certificates/1.crt": one,
            "usr/share/ca-certificates/2.crt": two,
            "etc/ca-certificates.conf": "# only one\n!1.crt\n2.crt\n",
        }
    )
    update_certificates(tree)
    assert text_of(tree, "etc/ssl/certs/ca-certificates.crt") == two.decode()


@pytest.mark.parametrize(
    "pem",
    [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END", b"-----BEGIN CERTIFICATE-----\n\xff\n-----END",
     b"-----BEGIN CERTIFICATE-----\nMIID\n-----END"],
)  # fmt: skip
def test_what_is_no_certificate_is_named(pem: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        subject_hash(pem, "/some/file.crt")
    assert caught.value.where == "/some/file.crt"
