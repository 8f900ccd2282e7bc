# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with a web server and a channel behind it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from channel_web import Web, handler_of, release, roles
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from erofs_edge.channel.publish import init
from erofs_edge.trust.key import KeySigner


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A server of an empty folder."""
    served = Web(tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(served)) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served
        server.shutdown()


@pytest.fixture(scope="session")
def keys() -> dict[str, KeySigner]:
    """Root keys of two types, two release keys, an online key, and a thief's key."""
    made = {name: KeySigner(name, rsa.generate_private_key(65537, 2048)) for name in ("r1", "t1", "t2", "thief")}
    return made | {name: KeySigner(name, ec.generate_private_key(ec.SECP256R1())) for name in ("r2", "r3", "online")}


@pytest.fixture
def channel(web: Web, keys: dict[str, KeySigner], tmp_path: Path) -> Web:
    """A channel with version 1: two root keys and two release keys must sign."""
    init(web.folder, roles(keys), now=datetime.now(UTC))
    release(web, keys, tmp_path, 1)
    return web
