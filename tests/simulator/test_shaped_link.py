# SPDX-License-Identifier: Apache-2.0
"""The slow link: right bytes in the right order, never faster than it may be."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import pytest

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.simulator.shaped import ShapedProxy, _Direction
from erofs_edge.transport.nbd.connect import Connection, parse_address


def test_when_bytes_arrive() -> None:
    link = _Direction(1000.0, 0.5)
    assert link.arrival(10.0, 100) == 10.6
    assert link.arrival(10.0, 100) == 10.7  # behind the first
    assert link.arrival(20.0, 0) == 20.5


def test_an_export_through_a_slow_link(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(300_000)
    (tmp_path / "image").write_bytes(content)
    export = FileExport(tmp_path / "image")
    server = Server({"": export})
    port = server.listen("127.0.0.1", 0)
    try:
        with ShapedProxy(port, rate=1e6, delay=0.02) as link:
            began = time.monotonic()
            first, second = (Connection(parse_address(f"nbd://127.0.0.1:{link.port}/")) for _ in range(2))
            assert first.read(0, 300_000) == content
            assert second.read(100_000, 100_000) == content[100_000:200_000]
            took = time.monotonic() - began
            first.close()
            second.close()
            assert link.connections == 2
    finally:
        server.stop()
        export.close()
    # a busy machine makes it slower, none makes it faster
    assert took >= 0.4 + 2 * 0.04


def test_a_server_that_is_not_there() -> None:
    with ShapedProxy(1, rate=1e6, delay=0) as link, pytest.raises(ErofsEdgeError):
        Connection(parse_address(f"nbd://127.0.0.1:{link.port}/"))


def test_connections_that_are_open_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as far:
        with ShapedProxy(far.getsockname()[1], rate=1e6, delay=0) as link:
            near = socket.create_connection(("127.0.0.1", link.port))
            near.settimeout(60)
            taken, _ = far.accept()
            taken.settimeout(60)
            near.sendall(b"x")
            assert taken.recv(1) == b"x"
        assert near.recv(1) == b"", "closed by the link"
        near.close()
        taken.close()
    assert not caplog.records, "asyncio has nothing to complain of"
