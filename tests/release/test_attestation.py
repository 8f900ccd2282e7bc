# SPDX-License-Identifier: Apache-2.0
"""What rebuilders say of a release: nobody signs what another wrote of another release, and anybody can check it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from made_build import Made, make_build

from erofs_edge.build.record import read_release, write_json
from erofs_edge.errors import ErofsEdgeError, UsageError, VerificationError
from erofs_edge.manifest.load import load_board
from erofs_edge.release.attestation import attestation, check_attestation, same_claim
from erofs_edge.release.bundles import Wish, check_wish
from erofs_edge.release.forecast import read_earlier
from erofs_edge.release.rebuild import Rebuilt, compare
from erofs_edge.trust.dsse import Statement, add_signature, seal
from erofs_edge.trust.key import KeySigner


def _signer(name: str) -> KeySigner:
    return KeySigner(name, rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def bob() -> KeySigner:
    return _signer("bob")


@pytest.fixture
def build(tmp_path: Path) -> Made:
    """The record of a release has no more in it than that of a build, as far as this goes."""
    made = make_build(tmp_path / "out", _signer("owner"))
    record = json.loads((made.out / "release.json").read_text())
    write_json(made.out / "release.json", record | {"board": "board", "inputs": {"digest": "00" * 32}})
    made.seal()
    return made


def _statement(build: Made) -> Statement:
    record = read_release(build.out)
    return attestation(Rebuilt(build.out, compare(build.out, record, build.out)), record)


def test_what_another_wrote_is_not_signed_unread(build: Made, bob: KeySigner) -> None:
    mine = _statement(build)
    there = seal(mine, _signer("alice"))
    elsewhere = replace(mine, predicate={**mine.predicate, "environment": {"python": "3.14.0"}})
    assert len(json.loads(add_signature(there, bob, lambda said: same_claim(said, elsewhere)))["signatures"]) == 2
    for other in (
        replace(mine, subjects={**mine.subjects, "disk.img": "00" * 32}),
        replace(mine, predicate={**mine.predicate, "root_hash": "00" * 32}),
        replace(mine, kind="urn:other"),
    ):
        with pytest.raises(VerificationError, match="another statement"):
            add_signature(there, bob, lambda said, other=other: same_claim(said, other))  # type: ignore[misc]


def test_an_attestation_is_checked_file_by_file(build: Made, bob: KeySigner, tmp_path: Path) -> None:
    file = tmp_path / "bob.json"
    file.write_bytes(seal(_statement(build), bob))
    check_attestation(build.out, file, bob)
    with pytest.raises(VerificationError, match="none of the"):
        check_attestation(build.out, file, build.signer)
    file.write_bytes(seal(replace(_statement(build), kind="https://slsa.dev/provenance/v1"), bob))
    with pytest.raises(VerificationError, match="not about an identical rebuild"):
        check_attestation(build.out, file, bob)
    statement = _statement(build)
    file.write_bytes(seal(replace(statement, subjects=dict(list(statement.subjects.items())[1:])), bob))
    with pytest.raises(VerificationError, match="another release"):
        check_attestation(build.out, file, bob)


def test_verify_wants_the_rebuilders_that_are_named(build: Made, bob: KeySigner, tmp_path: Path, edge: str) -> None:
    file, keys = tmp_path / "attestation.json", {}
    file.write_bytes(seal(_statement(build), bob))
    for signer in (build.signer, bob):
        keys[signer.name] = tmp_path / f"{signer.name}.pub"
        pem = signer.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        keys[signer.name].write_bytes(pem)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [edge, "verify", str(build.out), "--key", str(keys["owner"]), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--attestation", file, "--attested-by", keys["bob"])
    assert done.returncode == 0 and "identical rebuild" in done.stdout, done.stderr
    done = run("--attestation", file, "--attested-by", keys["bob"], "--attested-by", keys["owner"])
    assert done.returncode == 4 and "by 'owner'" in done.stderr
    done = run("--attestation", file)
    assert done.returncode == 2 and "must be given together" in done.stderr


def test_a_key_that_is_not_there_is_told_before_the_rebuild(build: Made, tmp_path: Path, edge: str) -> None:
    words = ["rebuild", str(build.out), "--attest", "file:none.pem", "--attestation", str(tmp_path / "a")]
    done = subprocess.run([edge, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "none.pem: cannot read the signing key" in done.stderr, done.stderr
    (tmp_path / "k.pem").write_bytes(_signer("k").key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    words[3], words[5] = f"file:{tmp_path / 'k.pem'}", str(tmp_path / "none/a")
    done = subprocess.run([edge, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "mkdir -p" in done.stderr, done.stderr


def test_what_no_build_could_have_is_told_before_it(repository: Path, build: Made, tmp_path: Path) -> None:
    board = load_board(repository / "boards/qemu-aarch64.yaml").value
    check_wish(Wish(True, "https://host.example/"), board)
    with pytest.raises(UsageError, match="not an address"):
        check_wish(Wish(sysupdate="somewhere"), board)
    with pytest.raises(UsageError, match="no slots"):
        check_wish(Wish(rauc=True), load_board(repository / "boards/generic-uefi-arm64.yaml").value)
    with pytest.raises(ErofsEdgeError, match="not of 'qemu-aarch64'"):
        read_earlier(build.out, board.board)
    with pytest.raises(ErofsEdgeError, match="nothing has been built"):
        read_earlier(tmp_path, board.board)
