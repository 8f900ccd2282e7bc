# SPDX-License-Identifier: Apache-2.0
"""Malformed addresses are reported as such, and files that a command cannot read are reported by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import make_build

from erofs_edge.cli.main import cli
from erofs_edge.errors import MirrorError
from erofs_edge.sources.http import Client, check_scheme, public
from erofs_edge.trust.key import KeySigner, public_key_pem

BRACKET = "//[::1"
"""an unclosed bracket, on which Python's own parser fails"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(public_key_pem(KeySigner("key", rsa.generate_private_key(65537, 2048))))
    return path


def said(*words: str | Path, code: int) -> str:
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.stderr


@pytest.mark.parametrize("scheme", ["nbd", "nbds", "provision"])
def test_verify(key: Path, scheme: str) -> None:
    assert "not an address" in said("verify", f"{scheme}:{BRACKET}", "--key", key, code=2)


def test_a_channel(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_CHANNELS", str(tmp_path / "channels"))
    channel, url = tmp_path / "channel", f"http://me:secret@{BRACKET[2:]}"
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    assert (
        CliRunner().invoke(cli, ["channel", "init", str(channel), "--root-key", "dev:r", "--key", "dev:k"]).exit_code
        == 0
    )
    root = channel / "metadata/1.root.json"
    told = said("channel", "show", url, "--channel-root", root, code=1)
    assert "not a usable URI: Invalid IPv6 URL" in told and "secret" not in told and "internal" not in told


def test_a_root_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file, not the channel; and the failed attempt leaves nothing behind."""
    monkeypatch.setenv("EROFS_EDGE_CHANNELS", str(tmp_path / "channels"))
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    channel = tmp_path / "channel"
    for words in (["init", str(channel), "--root-key", "dev:r"], ["publish", str(channel)]):
        run = CliRunner().invoke(cli, ["channel", *words, "--key", "dev:k"])
        assert run.exit_code == 0, run.output
    (tmp_path / "text").write_text("{}")
    (tmp_path / "other").write_bytes((channel / "metadata/timestamp.json").read_bytes())
    for name, why in (("text", "no metadata at all"), ("other", "timestamp"), ("none", "")):
        told = said("channel", "show", "http://127.0.0.1:1", "--channel-root", tmp_path / name, code=1 if why else 2)
        assert not why or f"{tmp_path / name}: not the root of a channel: {why}" in told
    assert "first visit" in said("channel", "show", "http://127.0.0.1:1", code=2)
    assert not (tmp_path / "channels").exists()


@pytest.mark.parametrize("url", [f"https:{BRACKET}", "https://host:x/", "https:///folder", "https://host:99999/"])
def test_where_devices_find_updates(url: str, tmp_path: Path) -> None:
    """It would end up in the devices' definitions."""
    made = make_build(tmp_path / "out", KeySigner("key", rsa.generate_private_key(65537, 2048)))
    told = said("bundle", "sysupdate", made.out, "-o", tmp_path / "web", "--url", url, code=2)
    assert "not an address that devices can use" in told and not (tmp_path / "web").exists()


def test_what_a_mirror_cannot_be() -> None:
    uri = f"http://me:p@ss@{BRACKET[2:]}/x"
    assert public(uri) == f"http:{BRACKET}/x"
    for ask in (check_scheme, lambda uri: Client().read(uri, 0)):
        with pytest.raises(MirrorError, match="not a usable URI") as caught:
            ask(uri)
        assert caught.value.where == f"http:{BRACKET}/x"


@pytest.mark.parametrize("data", [b"", bytes(10000)])
def test_no_vbmeta(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.img").write_bytes(data)
    assert f"{tmp_path / 'x.img'}: offset 0x0: " in said("avb", "info-image", "--image", tmp_path / "x.img", code=1)
