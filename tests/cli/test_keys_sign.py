# SPDX-License-Identifier: Apache-2.0
"""The `keys` and `sign` commands, and what they must never reveal: private keys, passphrases, PINs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from killed import kills_leave_nothing

from erofs_edge.cli.main import cli
from erofs_edge.erofs import build
from erofs_edge.trust.key import KeySigner, public_key_pem
from erofs_edge.trust.root_hash import verify_root_hash, verify_verity_signature
from erofs_edge.trust.signer import open_signer
from erofs_edge.verity.fec import Places, write_parity
from erofs_edge.verity.tree import append


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "keys"
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(folder))
    return folder


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "system.img"
    path.write_bytes(b"system" * 50_000)
    return path, append(path).root_hash


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def record(*arguments: str | Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(run(*arguments, "--json").stdout)
    return found


def test_keys_are_made_listed_shown_and_rotated(keys: Path) -> None:
    made = record("keys", "new", "product")
    assert made["uri"] == f"file:{keys / 'product.pem'}" and made["type"] == "rsa2048" and not made["development"]
    assert stat.S_IMODE((keys / "product.pem").stat().st_mode) == 0o600
    run("keys", "new", "product", code=1)
    record("keys", "new", "edge", "--type", "ecdsa-p256", "--development")
    listed = json.loads(run("keys", "list", "--json").stdout)
    assert [(k["name"], k["kind"], k["development"]) for k in listed] == [
        ("edge", "ecdsa-p256", True), ("product", "rsa2048", False),
    ]  # fmt: skip
    shown = record("keys", "show", "product")
    assert shown["sha256"] == made["sha256"]
    assert shown["public_key"] == (keys / "product.pub").read_text()
    assert "BEGIN CERTIFICATE" in run("keys", "show", "product", "--certificate").stdout
    rotated = record("keys", "rotate", "product")
    assert rotated["sha256"] != made["sha256"]
    assert Path(str(rotated["kept"])).exists()
    (keys / "edge.pem").chmod(0o644)
    assert "OTHERS CAN READ IT" in run("keys", "list").stdout
    run("keys", "new", "../x", code=2)


@pytest.mark.parametrize("uri", ["dev:typo", "typo"])
def test_looking_at_a_key_makes_none(uri: str, keys: Path) -> None:
    """Not even for a misspelt name; an existing key is shown by its URI, and signing still creates one."""
    record("keys", "new", "product", "--development")
    before = sorted(keys.iterdir())
    result = run("keys", "show", uri, code=1)
    assert f"{keys / 'typo.pem'}: " in result.stderr and sorted(keys.iterdir()) == before
    if uri.startswith("dev:"):
        assert (
            "no such key" in result.stderr and "hint: make it: erofs-edge keys new typo --development" in result.stderr
        )
    assert record("keys", "show", "dev:product") == record("keys", "show", "product")
    open_signer("dev:typo")
    assert record("keys", "show", "dev:typo")["development"] is True


def test_an_encrypted_key(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "correct horse")
    record("keys", "new", "locked", "--encrypt")
    assert b"ENCRYPTED" in (keys / "locked.pem").read_bytes()
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "battery staple")
    result = run("keys", "show", "locked", code=1)
    assert "does not unlock" in result.stderr and "staple" not in result.output


def test_an_empty_passphrase_makes_no_open_key(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a new key nor one that replaces another."""
    record("keys", "new", "product")
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "")
    for words in (("new", "other"), ("rotate", "product")):
        assert "an empty passphrase encrypts nothing" in run("keys", *words, "--encrypt", code=1).stderr
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


def test_one_passphrase_from_a_pipe_opens_the_old_key_and_locks_the_new(
    keys: Path, edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "correct horse")
    made = record("keys", "new", "locked", "--encrypt")
    monkeypatch.delenv("EROFS_EDGE_PASSPHRASE")
    reader, writer = os.pipe()
    os.write(writer, b"correct horse\n")
    os.close(writer)
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE_FD", str(reader))
    command = [edge, "keys", "rotate", "locked", "--encrypt", "--json"]
    done = subprocess.run(command, pass_fds=[reader], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] != made["sha256"]
    assert b"ENCRYPTED" in (keys / "locked.pem").read_bytes()


@pytest.mark.parametrize(("words", "encrypted"), [([], True), (["--no-encrypt"], False)])
def test_a_key_is_encrypted_after_a_rotation_as_before(
    keys: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], encrypted: bool
) -> None:
    monkeypatch.setenv("EROFS_EDGE_PASSPHRASE", "correct horse")
    record("keys", "new", "locked", "--encrypt")
    record("keys", "rotate", "locked", *words)
    assert (b"ENCRYPTED" in (keys / "locked.pem").read_bytes()) == encrypted
    record("keys", "new", "open")
    record("keys", "rotate", "open", *words)
    assert b"ENCRYPTED" not in (keys / "open.pem").read_bytes()


@pytest.mark.parametrize(
    ("data", "says"), [(b'{"a":' * 100_000, "not a trusted root"), (b"{", "not a trusted root"), (None, "cannot read")]
)
def test_a_policy_of_what_is_no_root(tmp_path: Path, data: bytes | None, says: str) -> None:
    root = tmp_path / "root.json" if data is not None else Path("/proc/self/mem")
    if data is not None:
        root.write_bytes(data)
    words = ("--identity", "a@b.example", "--issuer", "https://x.example", "-o", tmp_path / "policy")
    assert f"{root}: {says}" in run("keys", "sigstore", "--root", root, *words, code=1).stderr
    assert not (tmp_path / "policy").exists()


def test_an_image_is_signed_by_its_data_and_openssl_agrees(
    keys: Path, image: tuple[Path, bytes], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    path, root = image
    record("keys", "new", "product")
    made = record("sign", path, "--key", f"file:{keys / 'product.pem'}")
    assert made["root_hash"] == root.hex()
    signature = Path(str(made["signature"]))
    verify_root_hash(signature.read_bytes(), root, open_signer(f"file:{keys / 'product.pem'}"))
    (tmp_path / "crt.pem").write_text(run("keys", "show", "product", "--certificate").stdout)
    (tmp_path / "rh").write_text(root.hex())
    command = [
        oracle("openssl"), "smime", "-verify", "-binary", "-inform", "der", "-in", signature, "-content",
        tmp_path / "rh", "-certfile", tmp_path / "crt.pem", "-CAfile", tmp_path / "crt.pem", "-purpose", "any",
    ]  # fmt: skip
    assert subprocess.run(command, capture_output=True, check=True).stdout == root.hex().encode()
    made = record("sign", path, "--key", f"file:{keys / 'product.pem'}", "--form", "verity-signature")
    raw = Path(str(made["signature"])).read_bytes()
    verify_verity_signature(raw, root, open_signer(f"file:{keys / 'product.pem'}"))


def test_an_image_with_parity_behind_its_tree_is_signed(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"system" * 50_000)
    image = tmp_path / "system.img"
    build(tmp_path / "tree", image, compression="lz4")
    info = append(image)
    write_parity(Places(image, image), info.superblock)
    assert record("sign", image, "--key", "dev:x")["root_hash"] == info.root_hash.hex()


def test_two_steps(keys: Path, image: tuple[Path, bytes], tmp_path: Path) -> None:
    path, root = image
    record("keys", "new", "product")
    signer = open_signer(f"file:{keys / 'product.pem'}")
    public = tmp_path / "product.pub.pem"
    public.write_bytes(public_key_pem(signer))
    folder = tmp_path / "requests"
    waiting = record("sign", path, "--key", public, "--prepare", folder)["waiting"]
    assert isinstance(waiting, list) and len(waiting) == 2, "root hash and certificate, in one round"
    run("sign", path, "--key", public, "--attach", folder, code=1)
    signatures = []
    for digest in waiting:
        signatures.append(tmp_path / f"{digest[:8]}.bin")
        signatures[-1].write_bytes(signer.sign_digest((folder / f"{digest}.digest").read_bytes()))
    (tmp_path / "bad").write_bytes(b"garbage")
    run("sign", "--attach", folder, "--key", public, tmp_path / "bad", code=4)
    assert record("sign", "--attach", folder, "--key", public, *signatures)["waiting"] == []
    made = record("sign", path, "--key", public, "--attach", folder)
    verify_root_hash(Path(str(made["signature"])).read_bytes(), root, signer)
    direct = record("sign", path, "--key", f"file:{keys / 'product.pem'}", "-o", tmp_path / "direct")
    assert made["certificate_sha256"] == direct["certificate_sha256"], "made where, no byte tells"
    assert Path(str(made["signature"])).read_bytes() == (tmp_path / "direct").read_bytes()


def test_no_private_byte_leaves(keys: Path, image: tuple[Path, bytes], tmp_path: Path) -> None:
    path, _ = image
    output = "".join(
        run(*command).output
        for command in (
            ("keys", "new", "product"), ("keys", "list"), ("keys", "show", "product"),
            ("keys", "show", "product", "--certificate", "--json"),
            ("sign", path, "--key", f"file:{keys / 'product.pem'}"),
            ("sign", path, "--key", f"file:{keys / 'product.pem'}", "--form", "verity-signature", "--json"),
        )
    )  # fmt: skip
    pem = (keys / "product.pem").read_bytes()
    key = load_pem_private_key(pem, None)
    secrets = secrets_of(KeySigner("x", key))  # type: ignore[arg-type]
    body = b"".join(pem.splitlines()[1:-1])
    for data in (output.encode(), *(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.parent != keys)):
        assert not any(secret in data for secret in secrets)
        assert body[100:160] not in data.replace(b"\n", b"")
    assert repr(open_signer(f"file:{keys / 'product.pem'}")) == "KeySigner('product')"


def secrets_of(signer: KeySigner) -> list[bytes]:
    """Return d, p and q as big-endian bytes and as text."""
    numbers = signer.key.private_numbers()
    values = [numbers.d, numbers.p, numbers.q]  # type: ignore[union-attr]
    raw = [v.to_bytes((v.bit_length() + 7) // 8, "big") for v in values]
    return [form for r in raw for form in (r[:32], r.hex()[:64].encode(), str(int.from_bytes(r, "big"))[:60].encode())]


def test_misuse_is_told(keys: Path, image: tuple[Path, bytes], tmp_path: Path) -> None:
    path, _ = image
    run("sign", path, code=2)
    run("sign", "--key", "dev:x", code=2)
    run("sign", path, "--key", "dev:x", "--prepare", tmp_path / "a", "--attach", tmp_path / "b", code=2)
    plain = tmp_path / "plain"
    plain.write_bytes(b"x" * 40_000)
    run("sign", plain, "--key", "dev:x", code=2)
    run("sign", "--root-hash", "ab" * 32, "--key", "dev:x", code=2)
    for wrong in ("ab", "xyz", "ab" * 33, "a" * 63, ""):
        said = run("sign", "--root-hash", wrong, "--key", "dev:x", "-o", tmp_path / "sig", code=2)
        assert "64 hexadecimal digits" in said.stderr and not (tmp_path / "sig").exists(), wrong
    run("sign", path, "--key", "pkcs11:token=t", code=2)


def test_a_kill_leaves_no_half_made_key(keys: Path) -> None:
    def forget() -> None:
        for path in keys.glob("product.*"):
            path.unlink()

    kills_leave_nothing(keys, "keys", "new", "product", "--type", "ecdsa-p256", before=forget)
