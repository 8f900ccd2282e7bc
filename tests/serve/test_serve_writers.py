# SPDX-License-Identifier: Apache-2.0
"""One host at a time writes an export. The hosts are addresses of this machine, 127.0.0.1 and others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from erofs_edge.errors import DeviceError, DeviceRefusedError
from erofs_edge.flash.nbd import NbdTarget
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.serve.writers import Writers
from erofs_edge.transport.nbd.connect import Connection, parse_address
from erofs_edge.transport.nbd.link import Link
from erofs_edge.transport.nbd.wire import Transmission

A, B = Path("a"), Path("b")


def test_the_first_that_writes_is_the_only_one_until_its_last_connection_ends() -> None:
    writers = Writers()
    for host in ("one", "one", "two"):
        writers.enter(A, host)
    assert [writers.other(A, host) for host in ("one", "two")] == ["", ""], "nobody has written yet"
    assert (writers.writes(A, "one"), writers.writes(A, "two"), writers.writes(A, "one")) == ("", "one", "")
    assert (writers.other(A, "two"), writers.other(B, "two")) == ("one", ""), "of another export nothing is said"
    writers.leave(A, "one")
    assert writers.writes(A, "two") == "one", "another connection of it is there"
    writers.leave(A, "one")
    assert (writers.other(A, "two"), writers.writes(A, "two"), writers.writes(A, "one")) == ("", "", "two")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a server with one writable file, under two names."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    export = FileExport(tmp_path / "disk", writable=True, description="a disk")
    server = Server({"": export, "named": export})
    try:
        yield server.listen("127.0.0.1", 0)
    finally:
        server.stop()
        export.close()


def host(number: int, port: int, name: str = "") -> Connection:
    """A connection of the host 127.0.0.NUMBER."""
    wire = Link(socket.create_connection(("127.0.0.1", port), 60, (f"127.0.0.{number}", 0)), 60)
    return Connection(parse_address(f"nbd://127.0.0.1:{port}/{name}"), wire=wire)


def test_two_hosts_at_one_export(port: int) -> None:
    first, again, second = host(2, port), host(2, port, "named"), host(3, port)
    assert second.export.description == "a disk"
    first.write(0, b"x" * 512)
    again.write(512, b"y" * 512)
    for work in (lambda: second.write(0, b"z" * 512), lambda: second.zero(0, 512)):
        with pytest.raises(DeviceError, match=r"\(EPERM\): 127.0.0.2 writes it"):
            work()
    assert second.read(0, 1024) == b"x" * 512 + b"y" * 512, "it may read"
    second.flush()
    later = NbdTarget(host(3, port, "named"))
    assert later.identity.read_only and later.read(0, 1) == b"x"
    with pytest.raises(DeviceRefusedError, match="the export is read-only") as caught:
        later.claim()
    assert caught.value.hint == "the server says: 127.0.0.2 writes it"
    first.close()
    again._wire.close()  # as one that dies

    def free() -> bool:
        third = host(3, port)
        third.close()
        return not third.export.can(Transmission.READ_ONLY)

    assert eventually(free)
    second.write(0, b"z" * 512)
    back = host(2, port)
    assert back.export.can(Transmission.READ_ONLY)
    for connection in (second, later, back):
        connection.close()


def test_programs_behind_a_socket_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    export = FileExport(tmp_path / "disk", writable=True)
    server = Server({"": export})
    try:
        server.listen_unix(tmp_path / "socket")
        address = parse_address(f"nbd+unix:///?socket={tmp_path / 'socket'}")
        one, two = Connection(address), Connection(address)
        one.write(0, b"x")
        two.write(1, b"y")
        assert two.read(0, 2) == b"xy", "one program, whose connections are its own affair"
        one.close()
        two.close()
    finally:
        server.stop()
        export.close()
