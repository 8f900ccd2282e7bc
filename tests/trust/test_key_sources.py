# SPDX-License-Identifier: Apache-2.0
"""Where keys may be: encrypted files, tokens, programs, elsewhere. Each signs; each that cannot says why."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from soft_token import SoftToken

from erofs_edge.errors import DeviceError, ErofsEdgeError, ToolError, UsageError, VerificationError
from erofs_edge.trust import files
from erofs_edge.trust.files import DEVELOPMENT_MARK, list_keys, make_key, rotate_key
from erofs_edge.trust.key import KeySigner, fingerprint, public_key_der, public_key_pem, read_public_key, sign, verifies
from erofs_edge.trust.offline import SignaturesMissingError, attach, waiting
from erofs_edge.trust.signer import open_signer

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
DATA = b"what is signed"
DIGEST = hashlib.sha256(DATA).digest()


def write_key(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, secret: bytes | None = None) -> Path:
    encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "product.pub.pem"
    path.write_bytes(public_key_pem(KeySigner("product", RSA)))
    return path


def script(path: Path, body: str) -> str:
    path.write_text(body)
    return f"command:{shlex.quote(sys.executable)} {shlex.quote(str(path))}"


@pytest.mark.parametrize("key", [RSA, EC])
def test_an_encrypted_key_takes_its_passphrase_from_where_it_is_told(
    key: rsa.RSAPrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_key(tmp_path / "k.pem", key, b"open sesame")
    reader, writer = os.pipe()
    os.write(writer, b"open sesame\n")
    os.close(writer)
    monkeypatch.setenv("MINE", "open sesame")
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "open sesame")
    for query in ("", "?passphrase=env:MINE", f"?passphrase=fd:{reader}"):
        signer = open_signer(f"file:{path}{query}")
        assert verifies(key.public_key(), sign(signer, DATA), DIGEST)
        assert signer.name == "k"
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "wrong")
    with pytest.raises(ErofsEdgeError, match="does not unlock") as caught:
        open_signer(f"file:{path}")
    assert "wrong" not in str(caught.value) and caught.value.where == str(path)


def test_without_a_passphrase_the_way_to_give_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_key(tmp_path / "k.pem", RSA, b"x" * 8)
    monkeypatch.delenv("EROFS_EDGE_PASSPHRASE", raising=False)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(ErofsEdgeError, match="no terminal") as caught:
        open_signer(f"file:{path}")
    assert "EROFS_EDGE_PASSPHRASE" in (caught.value.hint or "")
    with pytest.raises(ErofsEdgeError, match="NOT_THERE is not set"):
        open_signer(f"file:{path}?passphrase=env:NOT_THERE")
    with pytest.raises(ErofsEdgeError, match="file descriptor 987"):
        open_signer(f"file:{path}?passphrase=fd:987")
    with pytest.raises(UsageError, match="source of a passphrase"):
        open_signer(f"file:{path}?passphrase=secret")


def test_ecdsa_in_memory_is_deterministic() -> None:
    signer = KeySigner("p256", EC)
    assert sign(signer, DATA) == sign(signer, DATA)


def test_a_program_signs(public: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    key = write_key(tmp_path / "k.pem", RSA)
    command = f"{oracle('openssl')} pkeyutl -sign -inkey {shlex.quote(str(key))} -pkeyopt digest:sha256"
    signer = open_signer(f"command:{command}?public-key={public}")
    assert (signer.name, signer.development) == ("product", False)
    assert sign(signer, DATA) == sign(KeySigner("x", RSA), DATA)
    told = script(tmp_path / "s.py", "import os,sys; sys.exit(os.environ['EROFS_EDGE_ALGORITHM'])")
    with pytest.raises(ToolError) as caught:
        sign(open_signer(f"{told}?public-key={public}&name=n"), DATA)
    assert caught.value.hint == "rsa2048"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys; sys.exit('out of paper')", "exit code 1"),
        ("", "returned 0 bytes"),
        ("import sys; sys.stdout.buffer.write(b'x' * 256)", "no signature by its public key"),
        ("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())", "no signature by its public key"),
        ("import sys; sys.stdout.buffer.write(b'x' * 10000)", "returned 10000 bytes"),
    ],
)
def test_what_a_program_returns_is_checked(body: str, message: str, public: Path, tmp_path: Path) -> None:
    signer = open_signer(f"{script(tmp_path / 's.py', body)}?public-key={public}")
    with pytest.raises(ErofsEdgeError, match=message):
        sign(signer, DATA)


def test_a_signature_by_another_key_is_garbage_too(public: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    other = write_key(tmp_path / "o.pem", rsa.generate_private_key(65537, 2048))
    command = f"{oracle('openssl')} pkeyutl -sign -inkey {shlex.quote(str(other))} -pkeyopt digest:sha256"
    with pytest.raises(VerificationError, match="no signature by its public key"):
        sign(open_signer(f"command:{command}?public-key={public}"), DATA)


def test_a_program_that_is_not_there(public: Path) -> None:
    with pytest.raises(ToolError, match="cannot run the signer"):
        sign(open_signer(f"command:/no/such/signer?public-key={public}"), DATA)
    with pytest.raises(UsageError, match="must name a program and its public key"):
        open_signer("command:signer")


def test_two_steps_without_a_network(public: Path, tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    uri = f"offline:{folder}?public-key={public}"
    for data in (DATA, b"more"):
        with pytest.raises(SignaturesMissingError) as caught:
            sign(open_signer(uri), data)
        assert "sign --attach" in (caught.value.hint or "")
    assert waiting(folder) == sorted([DIGEST.hex(), hashlib.sha256(b"more").hexdigest()])
    assert (folder / f"{DIGEST.hex()}.digest").read_bytes() == DIGEST
    key = read_public_key(public, "product")
    signature = KeySigner("product", RSA).sign_digest(DIGEST)
    with pytest.raises(VerificationError, match="signature 2 of 2"):
        attach(folder, key, [signature, b"garbage"])
    assert len(waiting(folder)) == 2, "one bad signature, and none is taken"
    assert attach(folder, key, [signature]) == [DIGEST.hex()]
    assert attach(folder, key, [signature]) == [], "a second round brings all signatures of the folder again"
    assert sign(open_signer(uri), DATA) == signature
    assert waiting(folder) == [hashlib.sha256(b"more").hexdigest()]
    (folder / f"{DIGEST.hex()}.sig").write_bytes(b"swapped")
    with pytest.raises(VerificationError):
        sign(open_signer(uri), DATA)
    assert attach(folder, key, [signature]) == [DIGEST.hex()]
    assert sign(open_signer(uri), DATA) == signature


def test_other_files_among_the_digests(public: Path, tmp_path: Path) -> None:
    key = read_public_key(public, "product")
    with pytest.raises(SignaturesMissingError):
        sign(open_signer(f"offline:{tmp_path}?public-key={public}"), DATA)
    (tmp_path / "notes.digest").write_bytes(b"to be signed on Monday")
    (tmp_path / f"{DIGEST.hex()}0.digest").write_bytes(b"")
    assert waiting(tmp_path) == [DIGEST.hex()]
    assert attach(tmp_path, key, [sign(KeySigner("product", RSA), DATA)]) == [DIGEST.hex()]
    assert waiting(tmp_path) == []


def test_a_token_signs(soft_token: SoftToken, tmp_path: Path) -> None:
    soft_token.add(write_key(tmp_path / "rsa.pem", RSA), "product", "01")
    soft_token.add(write_key(tmp_path / "ec.pem", EC), "curve", "02")
    signer = open_signer(soft_token.uri("object=product;type=private"))
    assert (signer.name, signer.development) == ("product", False)
    assert public_key_der(signer) == public_key_der(KeySigner("x", RSA))
    assert sign(signer, DATA) == sign(KeySigner("x", RSA), DATA)
    by_id = open_signer(soft_token.uri("id=%02"))
    assert by_id.name == "curve"
    assert verifies(EC.public_key(), sign(by_id, DATA), DIGEST)
    assert "0815" not in repr(signer)


def test_tokens_and_keys_that_are_not_there(
    soft_token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="no such key"):
        open_signer(soft_token.uri("object=nobody"))
    with pytest.raises(ErofsEdgeError, match="wrong PIN") as caught:
        open_signer(soft_token.uri("object=product", pin="9999"))
    assert "9999" not in str(caught.value)
    with pytest.raises(DeviceError, match="no such token") as caught:
        open_signer(f"pkcs11:token=gone;object=product?module-path={soft_token.module}&pin-value=1")
    assert "edge" in (caught.value.hint or "")
    with pytest.raises(ToolError, match="cannot load the PKCS#11 module"):
        open_signer(f"pkcs11:object=x?module-path={tmp_path / 'no.so'}")
    (tmp_path / "pin").write_text("0815\n")
    for source in (f"pin-source=file:{tmp_path / 'pin'}", "pin-source=env:MY_PIN"):
        monkeypatch.setenv("MY_PIN", "0815")
        with pytest.raises(DeviceError, match="no such key"):
            open_signer(f"{soft_token.uri('object=nobody', pin=None)}&{source}")


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=x",
        "pkcs11:object=x",
        "pkcs11:shape=round;object=x",
        "pkcs11:object=x;type=public?module-path=m",
        "pkcs11:object=x?module-path=m&colour=red",
    ],
)
def test_a_bad_token_uri_is_a_usage_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EROFS_EDGE_PKCS11_MODULE", raising=False)
    with pytest.raises(UsageError) as caught:
        open_signer(uri)
    assert caught.value.hint


def test_keys_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        for kind in ("rsa2048", "ecdsa-p256"):
            make_key(tmp_path / "keys" / f"{kind}.pem", kind)
            make_key(tmp_path / "keys" / f"{kind}-locked.pem", kind, secret="correct horse")
    finally:
        os.umask(old)
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in (tmp_path / "keys").iterdir())
    found = {k.name: k for k in list_keys(tmp_path / "keys")}
    assert [found[n].kind for n in ("rsa2048", "ecdsa-p256", "rsa2048-locked")] == ["rsa2048", "ecdsa-p256", None]
    assert found["rsa2048-locked"].encrypted and not found["rsa2048"].encrypted
    assert all(k.private and not k.development for k in found.values())
    with pytest.raises(UsageError, match="unknown kind"):
        make_key(tmp_path / "x.pem", "rsa1024")


def test_a_key_without_its_scheme_is_told_as_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path))
    make_key(tmp_path / "product.pem", "ecdsa-p256")
    for text in ("product", str(tmp_path / "product.pem")):
        with pytest.raises(UsageError) as error:
            open_signer(text)
        assert error.value.hint == f"did you mean file:{tmp_path / 'product.pem'}?"
    for text in ("other", "", "weird:product"):
        with pytest.raises(UsageError) as error:
            open_signer(text)
        assert error.value.hint is not None and "dev:dev" in error.value.hint


def test_rotation_keeps_the_old_key(tmp_path: Path) -> None:
    path = tmp_path / "product.pem"
    make_key(path, "ecdsa-p256")
    before = open_signer(f"file:{path}")
    kept = rotate_key(path)
    after = open_signer(f"file:{path}")
    assert fingerprint(before) != fingerprint(after)
    assert fingerprint(open_signer(f"file:{kept}")) == fingerprint(before)
    assert kept.name == f"product.{fingerprint(before)[:12]}.pem"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (path, kept)} == {0o600}


def test_a_rotation_that_was_killed_is_done_again(tmp_path: Path) -> None:
    """The old key had its second name already; whatever else has that name stays."""
    path = tmp_path / "product.pem"
    make_key(path, "ecdsa-p256")
    kept = path.with_name(f"product.{fingerprint(open_signer(f'file:{path}'))[:12]}.pem")
    kept.hardlink_to(path)
    with pytest.raises(ErofsEdgeError, match="empty passphrase"):
        rotate_key(path, secret="")
    assert kept.samefile(path), "what failed has changed nothing"
    old = path.read_bytes()
    assert rotate_key(path) == kept and kept.read_bytes() == old != path.read_bytes()
    path.write_bytes(old)
    kept.write_bytes(b"another file")
    with pytest.raises(ErofsEdgeError, match="already has the name"):
        rotate_key(path)
    assert (path.read_bytes(), kept.read_bytes()) == (old, b"another file")


def test_an_empty_passphrase_makes_no_open_key(tmp_path: Path) -> None:
    with pytest.raises(ErofsEdgeError, match="an empty passphrase encrypts nothing") as caught:
        make_key(tmp_path / "x.pem", "ecdsa-p256", secret="")
    assert "EROFS_EDGE_PASSPHRASE" in (caught.value.hint or "") and not any(tmp_path.iterdir())


def test_a_development_key_stays_one_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path))
    open_signer("dev:board")
    assert (tmp_path / "board.pem").read_bytes().startswith(DEVELOPMENT_MARK)
    (tmp_path / "product.pem").write_bytes((tmp_path / "board.pem").read_bytes())
    assert open_signer(f"file:{tmp_path / 'product.pem'}").development
    rotate_key(tmp_path / "board.pem")
    assert open_signer("dev:board").development
    assert files.list_keys(tmp_path)[0].development
