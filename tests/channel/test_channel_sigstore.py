# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles in addition to a channel's own signatures: required by the channel or by the client, checked for
both."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from channel_web import Web, release, roles
from click.testing import CliRunner
from fake_sigstore import FakeSigstore

from erofs_edge.channel.follow import Channel
from erofs_edge.channel.publish import add, init, publish
from erofs_edge.cli.main import cli
from erofs_edge.errors import FormatError, VerificationError
from erofs_edge.simulator.build import build_folder
from erofs_edge.trust.key import KeySigner
from erofs_edge.trust.sigstore import Policy

BOARD = "simulated"
Signers = dict[str, KeySigner]


@pytest.fixture(scope="module")
def fake() -> FakeSigstore:
    return FakeSigstore()


def build(folder: Path, version: int, fake: FakeSigstore | None, identity: str = "releases@example.com") -> Path:
    """A build, with a bundle for its record."""
    out = build_folder(folder / f"v{version}", version)
    if fake is not None:
        bundle = fake.sign((out / "release.json").read_bytes(), identity)
        (out / "release.json.sigstore.json").write_text(json.dumps(bundle))
    return out


def put(web: Web, keys: Signers, out: Path, policy: Policy | None = None) -> None:
    add(web.folder, out, policy)
    publish(web.folder, [keys[name] for name in ("t1", "t2", "online")], now=datetime.now(UTC))


def follow(web: Web, state: Path, policy: Policy | None = None) -> bytes:
    with Channel(web.url, web.folder / "metadata/1.root.json", state, policy) as channel:
        assert channel.boards() == [BOARD]
        return channel.release(BOARD).image.read_bytes()


def test_the_channel_demands_one(web: Web, keys: Signers, fake: FakeSigstore, tmp_path: Path) -> None:
    """A release without a bundle, or with someone else's, is not added; if a thief of the channel's keys adds one, that
    is detected."""
    init(web.folder, roles(keys), now=datetime.now(UTC))
    for wrong in (None, FakeSigstore()):
        out = build(tmp_path / "wrong", 1, wrong)
        with pytest.raises(VerificationError, match="Sigstore bundle"):
            add(web.folder, out, fake.policy())
    out = build(tmp_path, 1, fake)
    put(web, keys, out, fake.policy())
    assert follow(web, tmp_path / "state") == (out / "disk.img").read_bytes()
    with pytest.raises(VerificationError, match="required, but there is none"):
        add(web.folder, build(tmp_path / "bare", 2, None))
    with pytest.raises(VerificationError, match="does not verify"):
        add(web.folder, build(tmp_path / "else", 2, fake, "else@example.com"))
    out = build(tmp_path, 2, fake)
    put(web, keys, out)
    assert follow(web, tmp_path / "state") == (out / "disk.img").read_bytes()


def test_who_follows_demands_one(channel: Web, keys: Signers, fake: FakeSigstore, tmp_path: Path) -> None:
    """Once given, the policy stays: a channel without a bundle, or with someone else's, is refused from then on,
    whatever its keys sign."""
    state = tmp_path / "state"
    follow(channel, tmp_path / "other")
    with pytest.raises(VerificationError, match="has none for 'simulated'"):
        follow(channel, state, fake.policy())
    put(channel, keys, build(tmp_path, 2, fake))
    follow(channel, state)
    put(channel, keys, build(tmp_path, 3, fake, "else@example.com"))
    with pytest.raises(VerificationError, match="does not verify"):
        follow(channel, state)
    release(channel, keys, tmp_path, 4)
    with pytest.raises(VerificationError, match="has none for 'simulated'"):
        follow(channel, state)
    follow(channel, tmp_path / "other")
    (next(state.iterdir()) / "sigstore.json").write_text("{}")
    with pytest.raises(FormatError, match="not a policy"):
        follow(channel, state)


def test_the_image_is_the_one_of_the_record(channel: Web, keys: Signers, fake: FakeSigstore, tmp_path: Path) -> None:
    """A thief has the channel's keys: a good record with its bundle, and the blocks of another image."""
    out = build(tmp_path, 2, fake)
    (out / "disk.img").write_bytes((build_folder(tmp_path / "thief", 9) / "disk.img").read_bytes())
    put(channel, keys, out)
    follow(channel, tmp_path / "careless")
    with pytest.raises(VerificationError, match="not the one in the record"):
        follow(channel, tmp_path / "state", fake.policy())
    assert not list((tmp_path / "state").rglob("*.img"))


def test_the_commands(
    web: Web, keys: Signers, fake: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EROFS_EDGE_CHANNELS", str(tmp_path / "state"))
    init(web.folder, roles(keys), now=datetime.now(UTC))
    policy, root = tmp_path / "policy.json", tmp_path / "trusted_root.json"
    root.write_text(json.dumps(fake.policy().trusted_root))

    def run(*words: str | Path, code: int = 0) -> str:
        done = CliRunner().invoke(cli, [str(one) for one in words])
        assert done.exit_code == code, done.output
        return done.output

    who = ("--identity", "releases@example.com", "--issuer", "https://login.example", "-o", policy)
    run("keys", "sigstore", "--root", root, *who)
    assert policy.read_bytes() == fake.policy().encode()
    (tmp_path / "none").write_text("{}")
    run("keys", "sigstore", "--root", tmp_path / "none", *who, code=1)
    assert "simulated.sigstore\nsigstore.policy" in run(
        "channel", "add", web.folder, build(tmp_path, 1, fake), "--sigstore", policy
    )
    publish(web.folder, [keys[name] for name in ("t1", "t2", "online")], now=datetime.now(UTC))
    follows = ("flash", "--from", web.url, "--channel-root", web.folder / "metadata/1.root.json")
    run(*follows, "--sigstore", policy, "--to", tmp_path / "card.img")
    policy.write_bytes(fake.policy("else@example.com").encode())
    run(*follows, "--sigstore", policy, "--to", tmp_path / "card.img", code=4)
    run("flash", tmp_path / "v1", "--sigstore", policy, "--to", tmp_path / "card.img", code=2)
