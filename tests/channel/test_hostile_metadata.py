# SPDX-License-Identifier: Apache-2.0
"""A channel's metadata, damaged at random from fixed seeds: refused with an ErofsEdgeError, or read as before."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from channel_web import Web

from erofs_edge.channel.follow import Channel
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust.key import KeySigner

CASES = 40


def damage(data: bytes, rng: random.Random) -> bytes:
    """Change, remove or insert bytes; or replace a value in the JSON by one of another type."""
    if rng.random() < 0.5:
        raw = bytearray(data)
        at = rng.randrange(len(raw))
        raw[at : at + rng.choice([0, 1, 30])] = rng.choice([b"", b"\0", b"\xff", b"[" * 3000, rng.randbytes(8)])
        return bytes(raw)
    value = json.loads(data)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        inner = node[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            node = inner
            continue
        node[key] = rng.choice([None, -1, 10**30, "", "../../etc/passwd", [], {}, True, 0.5, {"a": [{}]}])
        return json.dumps(value).encode()


@pytest.mark.parametrize("role", ["1.root", "timestamp", "1.snapshot", "1.targets"])
def test_documents(role: str, channel: Web, keys: dict[str, KeySigner], tmp_path: Path) -> None:
    file = channel.folder / "metadata" / f"{role}.json"
    whole, url = file.read_bytes(), channel.folder.as_uri()
    root = tmp_path / "root.json"
    shutil.copyfile(channel.folder / "metadata/1.root.json", root)
    with Channel(url, root, tmp_path / "good") as good:
        boards, record = good.boards(), good.record(good.boards()[0])
    for seed in range(CASES):
        (root if role == "1.root" else file).write_bytes(damage(whole, random.Random(f"{role} {seed}")))
        state = tmp_path / f"state-{seed}"
        try:
            with Channel(url, root, state) as found:
                assert (found.boards(), found.record(boards[0])) == (boards, record), seed
        except ErofsEdgeError:
            pass
        assert not (state.parent / "etc").exists()
    file.write_bytes(whole)
