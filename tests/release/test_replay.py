# SPDX-License-Identifier: Apache-2.0
"""Signatures of a release are found in its files, whatever else is in them; builds that fail are told as what they
are."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from erofs_edge.cli.rebuild import rebuild as rebuild_command
from erofs_edge.errors import ReproducibilityError
from erofs_edge.release import variations
from erofs_edge.release.rebuild import Rebuilt, Verdict
from erofs_edge.release.replay import replay_signer
from erofs_edge.trust.key import KeySigner, sign, verifies

DEEP = b'{"a":' * 100_000
DIGEST = bytes(range(32))


@pytest.fixture(scope="module")
def owner() -> KeySigner:
    return KeySigner("owner", rsa.generate_private_key(65537, 2048))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("sign.crt", b"-----BEGIN CERTIFICATE-----\nMIIBx\n-----END CERTIFICATE-----\n"),
        ("contents.json", DEEP),
        ("contents.json", json.dumps({"text": "x" * 201}).encode()),
        ("contents.json", b"{}]"),
        ("provenance.intoto.jsonl", DEEP),
        ("provenance.intoto.jsonl", b'{"signatures": [{"sig": "MIIBx"}]}'),
        ("boot.fit", b"\xd0\x0d\xfe\xed"),
        ("update.raucb", b"\xff" * 8),
    ],
)
def test_a_damaged_file_hides_no_signature_of_another(owner: KeySigner, tmp_path: Path, name: str, data: bytes) -> None:
    signature = owner.sign_digest(DIGEST)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.intoto.jsonl").write_text(
        json.dumps({"signatures": [{"sig": base64.b64encode(signature).decode()}]})
    )
    signer = replay_signer(tmp_path, {"sign": {"name": "owner"}}, owner.public_key)
    assert signer.sign_digest(DIGEST) == signature


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_blank_signature_is_passed_on_and_never_accepted(owner: KeySigner, tmp_path: Path, kind: str) -> None:
    key = owner if kind == "rsa" else KeySigner("owner", ec.generate_private_key(ec.SECP256R1()))
    signer = replay_signer(tmp_path, {"sign": {"name": "owner"}}, key.public_key)
    blank = sign(signer, b"other content")
    assert type(blank) is bytes and (kind == "ecdsa" or len(blank) == 256)
    assert signer.missing == [hashlib.sha256(b"other content").hexdigest()]
    assert not verifies(key.public_key, blank, hashlib.sha256(b"other content").digest())


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rebuilt], None]:
    """The release is made again as it is; each variation gives this."""

    def gives(varied: Rebuilt) -> None:
        same = Rebuilt(Path("out"), [Verdict("disk.img", "ab", "ab")])
        monkeypatch.setattr("erofs_edge.release.rebuild.rebuild", lambda *args, **more: same)
        monkeypatch.setattr(variations, "rebuild_varied", lambda *args: varied)

    return gives


def test_a_variation_that_builds_nothing_is_named(rebuilt: Callable[[Rebuilt], None], tmp_path: Path) -> None:
    rebuilt(Rebuilt(tmp_path, error="cannot reach the mirror"))
    done = CliRunner().invoke(rebuild_command, [str(tmp_path), "--variations"])
    assert isinstance(done.exception, ReproducibilityError)
    assert "variation time: cannot reach the mirror" in done.exception.message
    rebuilt(Rebuilt(tmp_path, [Verdict("disk.img", "ab", "cd")]))
    done = CliRunner().invoke(rebuild_command, [str(tmp_path), "--variations"])
    assert isinstance(done.exception, ReproducibilityError) and "1 file(s) differ: disk.img" in done.exception.message
    rebuilt(Rebuilt(tmp_path, [Verdict("disk.img", "ab", "ab")], "a signature is missing"))
    done = CliRunner().invoke(rebuild_command, [str(tmp_path), "--variations"])
    assert isinstance(done.exception, ReproducibilityError)
    assert "variation time: a signature is missing" in done.exception.message and done.exception.hint is None


def test_a_variation_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variations, "_SECONDS", 0.1)
    monkeypatch.setattr(variations, "_RUN", "import time; time.sleep(60)")
    with pytest.raises(ReproducibilityError, match=r"variation 'umask' takes longer than 0\.1 s"):
        variations.rebuild_varied(tmp_path, tmp_path / "out", "umask")
