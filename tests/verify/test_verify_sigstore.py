# SPDX-License-Identifier: Apache-2.0
"""`verify --sigstore`: a bundle beside the record is part of what is checked, and of no release where nobody asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sigstore import FakeSigstore
from fixed_key import fixed_key
from made_build import Made, make_build

from erofs_edge.cli.main import cli
from erofs_edge.trust.dsse import Statement, seal
from erofs_edge.trust.key import public_key_pem
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.output import PROVENANCE
from erofs_edge.verify.path import verify_path

BUNDLE = "release.json.sigstore.json"


@pytest.fixture(scope="module")
def fake() -> FakeSigstore:
    return FakeSigstore()


@pytest.fixture
def made(tmp_path: Path, fake: FakeSigstore) -> Made:
    """A release, with a bundle over its record."""
    made = make_build(tmp_path / "out", fixed_key(1, "product"))
    (made.out / PROVENANCE).write_bytes(seal(Statement("urn:test", {}, {}), made.signer))
    made.seal()
    (made.out / BUNDLE).write_text(json.dumps(fake.sign((made.out / "release.json").read_bytes())))
    return made


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


def test_a_bundle_is_checked_where_it_is_asked_for(made: Made, fake: FakeSigstore) -> None:
    assert failed(verify_path(made.out, made.signer)) == {}
    for path in (made.out, made.out / "release.json"):
        verdict = verify_path(path, made.signer, policy=fake.policy())
        assert failed(verdict) == {}
        assert verdict.checks[0].what == BUNDLE and "entry 2 of the log" in verdict.checks[0].against
    assert BUNDLE in failed(verify_path(made.out, made.signer, policy=fake.policy("else@example.com")))
    assert failed(verify_path(made.out / "boot.fit", made.signer, policy=fake.policy())) == {
        "boot.fit.sigstore.json": "no Sigstore bundle"
    }


def test_of_another_record_or_none(made: Made, fake: FakeSigstore) -> None:
    bundle = (made.out / BUNDLE).read_bytes()
    (made.out / BUNDLE).unlink()
    (made.out / "more.txt").write_text("x")
    made.seal()
    (made.out / BUNDLE).write_bytes(bundle)
    assert "does not verify" in failed(verify_path(made.out, made.signer, policy=fake.policy()))[BUNDLE]
    (made.out / BUNDLE).unlink()
    assert failed(verify_path(made.out, made.signer, policy=fake.policy())) == {BUNDLE: "no Sigstore bundle"}
    assert failed(verify_path(made.out, made.signer)) == {}


def test_the_command(made: Made, fake: FakeSigstore, tmp_path: Path) -> None:
    (tmp_path / "pub.pem").write_bytes(public_key_pem(made.signer))
    words = ["verify", str(made.out), "--key", str(tmp_path / "pub.pem"), "--sigstore", str(tmp_path / "policy")]
    for policy, code in ((fake.policy(), 0), (fake.policy(issuer="https://else.example"), 4)):
        (tmp_path / "policy").write_bytes(policy.encode())
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == code and BUNDLE in done.output, done.output
    (tmp_path / "policy").write_bytes(b"{}")
    assert "not a policy" in CliRunner().invoke(cli, words).output
