# SPDX-License-Identifier: Apache-2.0
"""Channels: following them from release to release; every attempt to present something else is refused and reported."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from channel_web import Web, release, roles
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tuf.api.metadata import Metadata, Timestamp

from erofs_edge.channel.follow import Channel
from erofs_edge.channel.publish import KEPT, Keys, add, init, publish, renew_root
from erofs_edge.channel.tuf_keys import ChannelSigner
from erofs_edge.cli.main import cli
from erofs_edge.errors import ErofsEdgeError, MirrorError, SourceError, UsageError, VerificationError
from erofs_edge.simulator.build import build_folder
from erofs_edge.trust.key import KeySigner

BOARD = "simulated"
Signers = dict[str, KeySigner]


def follow(web: Web, state: Path, root: Path | None = None) -> bytes:
    """Get the board's image, with the root metadata or the state of an earlier visit."""
    with Channel(web.url, root, state) as channel:
        assert channel.boards() == [BOARD]
        return channel.release(BOARD).image.read_bytes()


def root_of(web: Web) -> Path:
    return web.folder / "metadata/1.root.json"


def test_from_release_to_release(channel: Web, keys: Signers, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(UsageError, match="its root is needed"):
        follow(channel, state)
    assert follow(channel, state, root_of(channel)) == (tmp_path / "v1/disk.img").read_bytes()
    first = channel.sent["blocks"]
    out = release(channel, keys, tmp_path, 2)
    assert follow(channel, state) == (out / "disk.img").read_bytes()
    assert channel.sent["blocks"] - first < first, "only what differs from what was here"
    sent = channel.sent["blocks"]
    with Channel(channel.url, None, state) as one:
        got = one.release(BOARD)
        assert (got.record["sign"]["rollback_index"], got.fetched.remote) == (2, 0)
    assert channel.sent["blocks"] == sent


def test_a_device_is_a_place_to_look(channel: Web, keys: Signers, tmp_path: Path) -> None:
    """A new client, with a card that has version 1."""
    out = release(channel, keys, tmp_path, 2)
    with Channel(channel.url, root_of(channel), tmp_path / "state") as one:
        got = one.release(BOARD, [tmp_path / "v1/disk.img"])
    assert got.image.read_bytes() == (out / "disk.img").read_bytes() and got.fetched.local > 0
    assert channel.sent["blocks"] == got.fetched.remote < got.fetched.remote + got.fetched.local


def test_expired(web: Web, keys: Signers, tmp_path: Path) -> None:
    """An attacker withholds the owner's newer metadata: what we get expires."""
    init(web.folder, roles(keys), now=datetime.now(UTC))
    add(web.folder, build_folder(tmp_path / "v1"))
    signers = [keys[name] for name in ("t1", "t2", "online")]
    publish(web.folder, signers, now=datetime.now(UTC) - timedelta(days=15))
    with pytest.raises(VerificationError, match="the channel has expired"):
        follow(web, tmp_path / "state", root_of(web))
    publish(web.folder, [keys["online"]], now=datetime.now(UTC))
    follow(web, tmp_path / "state", root_of(web))


def test_rolled_back(channel: Web, keys: Signers, tmp_path: Path) -> None:
    state, old = tmp_path / "state", tmp_path / "old"
    shutil.copytree(channel.folder, old)
    release(channel, keys, tmp_path, 2)
    follow(channel, state, root_of(channel))
    channel.folder = old
    with pytest.raises(VerificationError, match="older than when it was last seen"):
        follow(channel, state)
    with pytest.raises(VerificationError, match="older than when it was last seen"):
        follow(channel, state, root_of(channel))
    assert follow(channel, tmp_path / "new", root_of(channel)), "who never saw version 2 cannot know"


def test_mix_and_match(channel: Web, keys: Signers, tmp_path: Path) -> None:
    """Valid metadata files of different moments."""
    old = tmp_path / "old"
    shutil.copytree(channel.folder, old)
    release(channel, keys, tmp_path, 2)
    good = channel.folder / "metadata/2.targets.json"
    kept = good.read_bytes()
    good.write_bytes((old / "metadata/1.targets.json").read_bytes())
    with pytest.raises(VerificationError, match="is inconsistent"):
        follow(channel, tmp_path / "s1", root_of(channel))
    good.write_bytes(kept)
    for index in (channel.folder / "targets").glob("*.index"):
        other = next(path for path in (old / "targets").glob("*.index"))
        index.write_bytes(other.read_bytes())
    with pytest.raises(VerificationError, match="is inconsistent"):
        follow(channel, tmp_path / "s2", root_of(channel))


def test_too_few_keys(channel: Web, keys: Signers, tmp_path: Path) -> None:
    add(channel.folder, build_folder(tmp_path / "v2", 2))
    with pytest.raises(UsageError, match="targets: 1 more key"):
        publish(channel.folder, [keys["t1"], keys["online"], keys["thief"]], now=datetime.now(UTC))
    with pytest.raises(UsageError, match="root: 1 more key"):
        renew_root(channel.folder, [keys["r1"]], now=datetime.now(UTC))
    with pytest.raises(UsageError, match="cannot reach a threshold of 2"):
        init(tmp_path / "w", roles(keys) | {"root": Keys((keys["r1"],), 2)}, now=datetime.now(UTC))
    with pytest.raises(UsageError, match="there is already a channel"):
        init(channel.folder, roles(keys), now=datetime.now(UTC))
    path = channel.folder / "metadata/1.targets.json"
    value = json.loads(path.read_text())
    value["signatures"] = value["signatures"][:1]
    _forge(channel, keys["online"], json.dumps(value).encode())
    with pytest.raises(VerificationError, match="not signed by enough"):
        follow(channel, tmp_path / "state", root_of(channel))


def _forge(channel: Web, online: KeySigner, targets: bytes) -> None:
    """An attacker has the online key: it can sign snapshot and timestamp, but not releases."""
    from tuf.api.metadata import MetaFile, Snapshot

    folder = channel.folder / "metadata"
    (folder / "1.targets.json").write_bytes(targets)
    snapshot = Metadata[Snapshot].from_file(str(folder / "1.snapshot.json"))
    snapshot.signed.meta["targets.json"] = MetaFile(1, len(targets))
    snapshot.sign(ChannelSigner(online))
    raw = snapshot.to_bytes()
    (folder / "1.snapshot.json").write_bytes(raw)
    stamp = Metadata[Timestamp].from_file(str(folder / "timestamp.json"))
    stamp.signed.snapshot_meta = MetaFile(1, len(raw))
    stamp.sign(ChannelSigner(online))
    (folder / "timestamp.json").write_bytes(stamp.to_bytes())


def test_a_thief_signs(channel: Web, keys: Signers, tmp_path: Path) -> None:
    path = channel.folder / "metadata/timestamp.json"
    stamp = Metadata[Timestamp].from_file(str(path))
    stamp.sign(ChannelSigner(keys["thief"]))
    path.write_bytes(stamp.to_bytes())
    with pytest.raises(VerificationError, match="not signed by enough"):
        follow(channel, tmp_path / "state", root_of(channel))
    path.write_bytes(b"{")
    with pytest.raises(VerificationError, match="is inconsistent"):
        follow(channel, tmp_path / "state2", root_of(channel))


def test_keys_change_and_devices_follow(channel: Web, keys: Signers, tmp_path: Path) -> None:
    state = tmp_path / "state"
    follow(channel, state, root_of(channel))
    new = {"root": Keys((keys["r2"], keys["r3"]), 2), "targets": Keys((keys["t2"],))}
    with pytest.raises(UsageError, match="root: 1 more key"):
        renew_root(channel.folder, [keys["r1"], keys["r2"]], now=datetime.now(UTC), keys=new)
    renew_root(channel.folder, [keys[name] for name in ("r1", "r2", "r3")], now=datetime.now(UTC), keys=new)
    add(channel.folder, build_folder(tmp_path / "v2", 2))
    publish(channel.folder, [keys["t2"], keys["online"]], now=datetime.now(UTC))
    for where, root in ((state, None), (tmp_path / "fresh", root_of(channel))):
        assert follow(channel, where, root) == (tmp_path / "v2/disk.img").read_bytes()
    with pytest.raises(UsageError, match="targets: 1 more key"):
        add(channel.folder, build_folder(tmp_path / "v3", 3))
        publish(channel.folder, [keys["t1"], keys["online"]], now=datetime.now(UTC))


def test_a_server_that_is_not_there_and_blocks_that_are_others(channel: Web, keys: Signers, tmp_path: Path) -> None:
    channel.change = lambda path, data: data[:-1] + bytes([data[-1] ^ 1]) if path.startswith("/blocks") else data
    with pytest.raises(VerificationError, match="does not match the index"):
        follow(channel, tmp_path / "state", root_of(channel))
    channel.change = lambda path, data: None
    with pytest.raises(MirrorError, match="cannot follow the channel"):
        follow(channel, tmp_path / "state")
    with pytest.raises(MirrorError, match="cannot follow the channel"):
        Channel("http://127.0.0.1:9", root_of(channel), tmp_path / "state")
    with pytest.raises(SourceError, match="no channel here"):
        add(tmp_path / "nothing", tmp_path / "v1")
    (tmp_path / "junk").write_text("{}")
    with pytest.raises(ErofsEdgeError):
        Channel(channel.url, tmp_path / "junk", tmp_path / "other")


def test_on_a_stick(channel: Web, tmp_path: Path) -> None:
    url = channel.folder.as_uri()
    with Channel(url, root_of(channel), tmp_path / "state") as one:
        assert one.release(BOARD).image.read_bytes() == (tmp_path / "v1/disk.img").read_bytes()
    (blocks,) = (channel.folder / "blocks").iterdir()
    blocks.write_bytes(blocks.read_bytes()[:-1])
    with Channel(url, None, tmp_path / "state") as one, pytest.raises(SourceError, match="too short"):
        (one.folder / f"{BOARD}.img").unlink()
        one.release(BOARD)


def test_old_blocks_go(channel: Web, keys: Signers, tmp_path: Path) -> None:
    for version in range(2, KEPT + 4):
        release(channel, keys, tmp_path, version)
    assert len(list((channel.folder / "blocks").iterdir())) == KEPT
    assert follow(channel, tmp_path / "s", root_of(channel)) == (tmp_path / f"v{KEPT + 3}/disk.img").read_bytes()


def test_the_commands(web: Web, keys: Signers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_CHANNELS", str(tmp_path / "state"))
    for name in ("r1", "t1"):
        private = keys[name].key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(private)
    folder, key, card = str(web.folder), f"file:{tmp_path / 't1.pem'}", tmp_path / "card.img"

    def run(*arguments: str | Path, code: int = 0) -> str:
        done = CliRunner().invoke(cli, [str(one) for one in arguments])
        assert done.exit_code == code, done.output
        return done.output

    run("channel", "init", folder, "--root-key", f"file:{tmp_path / 'r1.pem'}", "--key", key)
    for version in (1, 2):
        out = build_folder(tmp_path / f"v{version}", version)
        run("channel", "add", folder, out)
        assert json.loads(run("channel", "publish", folder, "--key", key, "--json"))["versions"]["targets"] == version
        root: list[str | Path] = ["--channel-root", root_of(web)] if version == 1 else []
        said = run("flash", "--from", web.url, *root, "--to", card)
        assert "fetched in" in said
        assert run("slots", "show", card).count("pending") == 2
    assert (f"{BOARD}  " in run("channel", "show", web.url)) and web.sent["blocks"] < 2 * card.stat().st_size
    run("channel", "renew", folder, "--root-key", f"file:{tmp_path / 'r1.pem'}")
    run("channel", "publish", folder, "--key", key)
    assert "2.root.json" in {path.name for path in (web.folder / "metadata").iterdir()}
    run("channel", "show", web.url)


def test_a_development_key_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    result = CliRunner().invoke(cli, ["channel", "init", str(tmp_path / "c"), "--root-key", "dev:r", "--key", "dev:k"])
    assert result.exit_code == 0, result.output
    assert [line.split("'")[1] for line in result.stderr.splitlines()] == ["k", "r"]
