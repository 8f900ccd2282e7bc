# SPDX-License-Identifier: Apache-2.0
"""Keys by URI: made on first use, read from files, refused with a reason."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from erofs_edge.errors import ErofsEdgeError, UsageError
from erofs_edge.trust.signer import open_signer, public_key_pem, read_public_key, sign


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "keys"
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(folder))
    return folder


def pem_of(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def test_development_key_is_made_once_and_only_its_owner_reads_it(keys: Path) -> None:
    first = open_signer("dev:board")
    path = keys / "board.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert (first.name, first.development, first.public_key.key_size) == ("board", True, 2048)
    assert open_signer("dev:board").public_key.public_numbers() == first.public_key.public_numbers()
    assert open_signer("dev:other").public_key.public_numbers() != first.public_key.public_numbers()


def test_many_first_users_agree_on_one_key(keys: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        signers = list(pool.map(open_signer, ["dev:x"] * 6))
    assert len({signer.public_key.public_numbers().n for signer in signers}) == 1
    assert [path.name for path in keys.iterdir()] == ["x.pem"], "no temporary file is left"


def test_openssl_makes_and_checks_the_same_signature(keys: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    signer = open_signer("dev:board")
    data, pub, sig = tmp_path / "data", tmp_path / "pub.pem", tmp_path / "sig"
    data.write_bytes(b"what is signed" * 100)
    pub.write_bytes(public_key_pem(signer))
    sig.write_bytes(sign(signer, data.read_bytes()))
    command = [oracle("openssl"), "dgst", "-sha256"]
    subprocess.run([*command, "-verify", pub, "-signature", sig, data], check=True, capture_output=True)
    theirs = subprocess.run([*command, "-sign", keys / "board.pem", data], check=True, capture_output=True).stdout
    assert theirs == sig.read_bytes()
    assert read_public_key(pub, "board").public_key.public_numbers() == signer.public_key.public_numbers()


def test_a_public_key_is_named_after_its_file(keys: Path, tmp_path: Path) -> None:
    for name in ("product.pem", "product.pub", "product.pub.pem", "product"):
        (tmp_path / name).write_bytes(public_key_pem(open_signer("dev:board")))
        assert read_public_key(tmp_path / name).name == "product"


def test_file_key_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "product-2031.pem"
    path.write_bytes(pem_of(rsa.generate_private_key(65537, 2048)))
    signer = open_signer(f"file:{path}")
    assert (signer.name, signer.development) == ("product-2031", False)


@pytest.mark.parametrize(
    "uri",
    ["", "dev", "kms:x", "/path/key.pem", "dev:", "dev:../x", "dev:A B", "file:k.pem?pass=1", "command:", "offline:x"],
)
def test_bad_uri_is_a_usage_error(uri: str, keys: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_signer(uri)
    assert caught.value.hint
    assert not keys.exists()


def test_unusable_key_files_are_told_apart(tmp_path: Path) -> None:
    samples = {
        "Ed25519; supported are RSA": pem_of(ed25519.Ed25519PrivateKey.generate()),
        "on secp384r1": pem_of(ec.generate_private_key(ec.SECP384R1())),
        "RSA key of 1024 bits": pem_of(rsa.generate_private_key(65537, 1024)),
        "RSA key of 2048 bits with exponent 3": pem_of(rsa.generate_private_key(3, 2048)),
        "not a PEM": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "not a PEM private": b"",
    }
    for index, (words, pem) in enumerate(samples.items()):
        path = tmp_path / f"{index}.pem"
        path.write_bytes(pem)
        with pytest.raises(ErofsEdgeError, match=words) as caught:
            open_signer(f"file:{path}")
        assert caught.value.where == str(path)
        assert caught.value.hint
    with pytest.raises(ErofsEdgeError, match="No such file"):
        open_signer(f"file:{tmp_path / 'none.pem'}")


def test_unwritable_key_directory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "file" / "keys"))
    with pytest.raises(ErofsEdgeError, match="cannot make a development key") as caught:
        open_signer("dev:x")
    assert "EROFS_EDGE_KEYS" in (caught.value.hint or "")
