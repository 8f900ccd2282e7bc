# SPDX-License-Identifier: Apache-2.0
"""What a build signs, what a release refuses, and how a build waits for a key on another machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.boot.fdt import parse
from erofs_edge.boot.fit import SIGNATURE_PATH
from erofs_edge.build.record import read_release
from erofs_edge.build.signing import (
    CERTIFICATE,
    RELEASE_SIGNATURE,
    ROOT_HASH_SIGNATURE,
    VERITY_SIGNATURE,
    Collector,
    refuse_development,
    sign_system,
)
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust.certificate import DEVELOPMENT, self_signed
from erofs_edge.trust.key import KeySigner, public_key_pem, read_public_key
from erofs_edge.trust.offline import SignaturesMissingError, attach, waiting
from erofs_edge.trust.root_hash import verify_detached, verify_root_hash, verify_verity_signature
from erofs_edge.trust.signer import open_signer

ROOT = bytes(range(32))


def test_the_stock_build_is_signed_and_openssl_agrees(
    stock: Callable[[str], Path], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    out = stock("qemu-aarch64")
    record = read_release(out)
    key, root_hash = read_public_key(out / "sign.pub.pem", "dev"), bytes.fromhex(record["system"]["root_hash"])
    verify_root_hash((out / ROOT_HASH_SIGNATURE).read_bytes(), root_hash, key)
    verify_verity_signature((out / VERITY_SIGNATURE).read_bytes(), root_hash, key)
    verify_detached((out / RELEASE_SIGNATURE).read_bytes(), (out / "release.json").read_bytes(), key)
    command = [
        oracle("openssl"), "cms", "-verify", "-binary", "-inform", "der", "-in", out / RELEASE_SIGNATURE, "-content",
        out / "release.json", "-certfile", out / CERTIFICATE, "-CAfile", out / CERTIFICATE, "-purpose", "any",
        "-attime", str(record["epoch"]),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == record
    certificate = x509.load_pem_x509_certificate((out / CERTIFICATE).read_bytes())
    assert int(certificate.not_valid_before_utc.timestamp()) == record["epoch"]


def test_reference_values_and_what_nobody_signs_are_in_the_signed_record(stock: Callable[[str], Path]) -> None:
    out = stock("qemu-aarch64")
    reference = read_release(out)["reference"]
    assert reference["root_hash"] == read_release(out)["system"]["root_hash"]
    images = parse((out / "boot.fit").read_bytes()).root.at("/images")
    assert images is not None
    (exposed,) = read_release(out)["exposed"]
    assert exposed.startswith("/etc can be changed on the partition 'data'")
    assert reference["fit"] == {n: hashlib.sha256(i.props["data"]).hexdigest() for n, i in images.children.items()}


def test_a_development_key_shows_in_every_artifact(stock: Callable[[str], Path]) -> None:
    out = stock("qemu-aarch64")
    assert read_release(out)["sign"]["development"] is True
    for name in (ROOT_HASH_SIGNATURE, RELEASE_SIGNATURE):
        assert DEVELOPMENT.encode() in (out / name).read_bytes()
    assert DEVELOPMENT in x509.load_pem_x509_certificate(
        (out / CERTIFICATE).read_bytes()
    ).subject.rfc4514_string().replace("\\", "")
    node = parse((out / "boot.fit").read_bytes()).root.at(SIGNATURE_PATH)
    assert node is not None and b"development" in node.props["signer-name"]


def test_no_private_byte_is_in_an_output(stock: Callable[[str], Path]) -> None:
    """No byte of the key itself: d, p, q and the PEM body."""
    out = stock("qemu-aarch64")
    signer = open_signer("dev:dev")
    assert isinstance(signer, KeySigner) and isinstance(signer.key, rsa.RSAPrivateKey)
    numbers = signer.key.private_numbers()
    needles = [n.to_bytes(256, "big").lstrip(b"\0")[:24] for n in (numbers.d, numbers.p, numbers.q)]
    for path in out.iterdir():
        if path.is_file() and path.stat().st_size < 1 << 28:
            data = path.read_bytes()
            assert not any(needle in data for needle in needles), path
            assert b"PRIVATE KEY" not in data or path.name in ("system.img", "boot.fit"), path


def test_a_release_refuses_development_keys(
    edge: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [edge, "build", "boards/qemu-aarch64.yaml", "--release", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'dev' is a development key" in done.stderr and "erofs-edge keys new" in done.stderr
    assert not (tmp_path / "out" / "release.json").exists()
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    open_signer("dev:dev")
    (tmp_path / "product.pem").write_bytes((tmp_path / "keys/dev.pem").read_bytes())
    with pytest.raises(ErofsEdgeError, match="development key"):
        refuse_development(open_signer(f"file:{tmp_path / 'product.pem'}"))
    refuse_development(KeySigner("product", rsa.generate_private_key(65537, 2048)))


def test_a_release_refuses_a_boot_loader_with_ways_round_the_signature(
    edge: str, repository: Path, tmp_path: Path
) -> None:
    subprocess.run([edge, "keys", "new", "product.pem"], cwd=tmp_path, check=True, capture_output=True)
    command = [edge, "build", "boards/qemu-aarch64.yaml", "--release", "--key", f"file:{tmp_path / 'product.pem'}"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "u-boot-qemu, which leaves ways around the signature" in done.stderr
    assert "u_boot: {build:" in done.stderr and not (tmp_path / "out" / "release.json").exists()


def test_an_error_that_stands_for_two_digests(tmp_path: Path) -> None:
    """As for the kernel images of both slots, whose digests are asked for together."""
    (tmp_path / "product.pem").write_bytes(public_key_pem(KeySigner("product", rsa.generate_private_key(65537, 2048))))
    offline = open_signer(f"offline:{tmp_path / 'requests'}?public-key={tmp_path / 'product.pem'}")
    collect = Collector()
    with suppress(SignaturesMissingError):
        offline.sign_digest(bytes(32))
    with collect.one():
        offline.sign_digest(b"\1" * 32)
    with pytest.raises(SignaturesMissingError, match="2 digests wait"):
        collect.finish()


def test_all_digests_of_a_build_wait_at_once(tmp_path: Path) -> None:
    signer = KeySigner("product", rsa.generate_private_key(65537, 2048))
    public, folder, work = tmp_path / "product.pem", tmp_path / "requests", tmp_path / "work"
    public.write_bytes(public_key_pem(signer))
    work.mkdir()
    offline = open_signer(f"offline:{folder}?public-key={public}")
    collect = Collector()
    assert sign_system(offline, ROOT, 5, work, collect) is None
    with collect.one():
        offline.sign_digest(hashlib.sha256(ROOT.hex().encode()).digest())  # asked for once more: no third digest
    with collect.one():  # as for what contains a signature that is missing
        raise SignaturesMissingError("the certificate is not signed yet", where=CERTIFICATE)
    with pytest.raises(SignaturesMissingError, match="2 digests wait"):
        collect.finish()
    digests = [bytes.fromhex(text) for text in waiting(folder)]
    assert hashlib.sha256(ROOT.hex().encode()).digest() in digests
    attach(folder, read_public_key(public, "product"), [signer.sign_digest(d) for d in digests])
    collect = Collector()
    certificate = sign_system(offline, ROOT, 5, work, collect)
    collect.finish()
    assert certificate == self_signed(signer, 5)
    verify_verity_signature((work / VERITY_SIGNATURE).read_bytes(), ROOT, signer)
