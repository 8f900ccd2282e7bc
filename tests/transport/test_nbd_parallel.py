# SPDX-License-Identifier: Apache-2.0
"""Several connections to nbdkit: the same bytes as over one, counted, and failures of any of them told."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erofs_edge.errors import CapacityError, DeviceError, SourceError
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.transport.nbd.connect import Address, Connection
from erofs_edge.transport.nbd.parallel import Connections

SIZE = 24 << 20
Serve = Callable[..., Address]


@pytest.fixture
def serve(tmp_path: Path, oracle: Callable[[str], str]) -> Iterator[Serve]:
    """serve(filters…): nbdkit on a file of random bytes."""
    (tmp_path / "image").write_bytes(random.Random(1).randbytes(SIZE))
    root = prefix() / "roots/oracles-nbd"
    (plugin,) = root.glob("usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so")
    running: list[subprocess.Popen[bytes]] = []

    def start(*filters: str, **values: str) -> Address:
        path = tmp_path / f"socket{len(running)}"
        pid = tmp_path / f"pid{len(running)}"
        chosen = [f"--filter={plugin.parent.parent}/filters/nbdkit-{name}-filter.so" for name in filters]
        words = [f"{key.replace('_', '-')}={value}" for key, value in values.items()]
        command = [oracle("nbdkit"), "-f", "-U", str(path), "-P", str(pid), *chosen, str(plugin)]
        running.append(subprocess.Popen([*command, f"file={tmp_path / 'image'}", *words]))
        while not pid.exists():  # written when it listens
            assert running[-1].poll() is None
        return Address(f"nbd+unix:///?socket={path}", "", "localhost", socket=path)

    yield start
    for process in running:
        process.kill()  # asked to end it waits for clients, of a test that has failed too
        process.wait()


@pytest.mark.oracle
def test_the_same_bytes_come_and_go_over_four_connections(serve: Serve, tmp_path: Path) -> None:
    link = Connections(serve(), count=4)
    want = (tmp_path / "image").read_bytes()
    for offset, length in ((0, SIZE), (12345, 7 << 20), (SIZE - 100, 100), (1, (512 << 10) + 1), (0, 0)):
        assert link.read(offset, length) == want[offset : offset + length]
    assert link.received > SIZE + (7 << 20)
    link.settle()
    assert link.count == 4
    data = random.Random(2).randbytes((5 << 20) + 77)
    sent = link.sent
    link.write(3 << 20, data)
    assert link.sent - sent >= len(data)
    link.flush()
    link.close()
    assert (tmp_path / "image").read_bytes() == want[: 3 << 20] + data + want[(3 << 20) + len(data) :]


@pytest.mark.oracle
def test_files_are_posted(serve: Serve, tmp_path: Path) -> None:
    """Posted and not waited for; what comes after sees them."""
    link, want = Connections(serve(), count=4), bytearray((tmp_path / "image").read_bytes())
    (tmp_path / "source").write_bytes(random.Random(3).randbytes(9 << 20))
    source = (tmp_path / "source").read_bytes()
    with (tmp_path / "source").open("rb") as file:
        for offset, at, length in ((0, 5, 4 << 20), (5 << 20, 4 << 20, 5 << 20), (12 << 20, 100, 7), (SIZE - 9, 0, 9)):
            link.post_file(offset, file.fileno(), at, length)
            want[offset : offset + length] = source[at : at + length]
        assert link.read(0, SIZE) == want
        assert link.sent > 9 << 20
        with pytest.raises(SourceError, match="shorter"):
            link.post_file(0, file.fileno(), 8 << 20, 2 << 20)
    link.close()


@pytest.mark.oracle
def test_a_failure_of_what_was_posted_is_told_once(serve: Serve, tmp_path: Path) -> None:
    link = Connections(serve("error", error_pwrite="ENOSPC", error_pwrite_rate="100%"), count=4)
    with (tmp_path / "image").open("rb") as file:
        with pytest.raises(CapacityError, match="ENOSPC"):
            for at in range(0, SIZE, 4 << 20):
                link.post_file(at, file.fileno(), at, 4 << 20)
            link.settle()
        assert link.read(0, 4096)
    link.close()


@pytest.mark.oracle
@pytest.mark.parametrize("filters", [(), ("multi-conn",)])
def test_what_comes_is_delivered_once(filters: tuple[str, ...], serve: Serve, tmp_path: Path) -> None:
    """Over four connections, and over one."""
    link = Connections(serve(*filters, **({"multi_conn_mode": "disable"} if filters else {})), count=4)
    want, got = (tmp_path / "image").read_bytes(), bytearray(SIZE)
    for offset, length in ((0, SIZE), (12345, 7 << 20), (SIZE - 1, 1), (5, 0)):
        counts: list[int] = []

        def take(at: int, data: memoryview, counts: list[int] = counts) -> None:
            got[at : at + len(data)] = data
            counts.append(len(data))

        got[:] = bytes(SIZE)
        link.deliver(offset, length, take)
        assert got == bytes(offset) + want[offset : offset + length] + bytes(SIZE - offset - length)
        assert sum(counts) == length
    link.close()


@pytest.mark.oracle
def test_who_takes_what_comes_may_fail(serve: Serve, tmp_path: Path) -> None:
    """That is raised, once nothing is under way: the connections go on."""
    link = Connections(serve(), count=4)
    left = [5, 4, 3, 2, 1]

    def take(at: int, data: memoryview) -> None:
        left.pop()

    with pytest.raises(IndexError):
        link.deliver(0, SIZE, take)
    assert link.read(0, SIZE) == (tmp_path / "image").read_bytes()
    link.close()


@pytest.mark.oracle
def test_a_server_that_takes_no_second_connection_gets_none(serve: Serve, tmp_path: Path) -> None:
    link = Connections(serve("multi-conn", multi_conn_mode="disable"), count=4)
    assert link.count == 1
    assert link.read(0, SIZE) == (tmp_path / "image").read_bytes()
    link.close()


@pytest.mark.oracle
def test_a_server_with_a_limit_is_read_by_those_that_it_takes(serve: Serve, tmp_path: Path) -> None:
    link = Connections(serve("limit", limit="2"), count=4)
    assert link.read(0, SIZE) == (tmp_path / "image").read_bytes()
    link.settle()
    assert link.count <= 2
    assert link.read(7, SIZE - 7) == (tmp_path / "image").read_bytes()[7:]
    link.close()


@pytest.mark.oracle
def test_a_failure_on_any_connection_is_told(serve: Serve) -> None:
    address = serve("error", error_pread="EIO", error_pread_rate="50%")
    link = Connections(address, count=4)
    with pytest.raises(DeviceError, match="EIO"):
        for _ in range(20):
            link.read(0, SIZE)
    with pytest.raises(DeviceError, match="EIO"):
        for _ in range(20):
            link.deliver(0, SIZE, lambda at, data: None)
    link.close()
    Connection(address).close()  # and the server is still there
