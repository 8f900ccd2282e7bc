# SPDX-License-Identifier: Apache-2.0
"""A writable disk for each device: its own changes over a common base."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.errors import DeviceError, DeviceRefusedError, ErofsEdgeError, SourceError
from erofs_edge.serve.devices import CopyOnWrite, Devices
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.transport.nbd.connect import Connection, parse_address

SIZE = 9 * 4096 + 1000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


@contextmanager
def serving(devices: Devices) -> Iterator[Callable[[str], Connection]]:
    server = Server(devices)
    port = server.listen("127.0.0.1", 0)
    try:
        yield lambda name: Connection(parse_address(f"nbd://127.0.0.1:{port}/{name}"))
    finally:
        server.stop()
        devices.close()


def test_two_devices_see_the_base_and_their_own_changes_only(base: Path, tmp_path: Path) -> None:
    content = base.read_bytes()
    with serving(Devices({}, tmp_path / "d", base)) as connect:
        first, second = connect("data/one"), connect("data/two")
        first.write(5000, b"x" * 3000)
        first.flush()
        changed = content[:5000] + b"x" * 3000 + content[8000:]
        assert first.read(0, SIZE) == changed
        assert second.read(0, SIZE) == content
        second.write(SIZE - 5, b"abcde")
        assert second.read(SIZE - 9, 9) == content[-9:-5] + b"abcde"
        first.close()
        second.close()
    assert base.read_bytes() == content
    # a server that starts again knows them
    with serving(Devices({}, tmp_path / "d", base)) as connect:
        first, second = connect("data/one"), connect("data/two")
        assert first.read(0, SIZE) == changed
        assert second.read(0, SIZE) == content[:-5] + b"abcde"
        first.close()
        second.close()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=9000)),
        st.tuples(st.just("zero"), st.integers(0, SIZE - 1), st.integers(1, 9000)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_a_disk_over_a_base_is_a_disk(
    base: Path, tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, bytes | int]]
) -> None:
    folder = tmp_path_factory.mktemp("cow")
    content = base.read_bytes()
    expected = bytearray(content)
    disk = CopyOnWrite(base, folder / "a.data")
    for what, at, value in operations:
        if isinstance(value, bytes):
            piece = value[: SIZE - at]
            disk.write(at, piece)
            expected[at : at + len(piece)] = piece
        elif what == "zero":
            length = min(value, SIZE - at)
            disk.zero(at, length)
            expected[at : at + length] = bytes(length)
        else:  # without a flush: what was answered is there
            disk.close()
            disk = CopyOnWrite(base, folder / "a.data")
    assert disk.read(0, SIZE) == expected
    assert sum(size for size, _ in disk.extents(0, SIZE)) == SIZE
    assert disk.extents(4096, 100)[0][0] == 100
    disk.close()
    assert base.read_bytes() == content


def test_empty_disks_cost_nothing_until_they_are_written(tmp_path: Path) -> None:
    with serving(Devices({}, tmp_path / "d", 1 << 30)) as connect:
        one = connect("data/one")
        assert one.size == 1 << 30
        assert one.read(123456, 100) == bytes(100)
        one.write(1 << 20, b"here")
        one.close()
    assert (tmp_path / "d/one.data").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("name", ["data/", "data/.hidden", "data/../x", "data/a/b", "data/" + "x" * 65, "other", ""])
def test_names_that_are_no_device(tmp_path: Path, name: str) -> None:
    with serving(Devices({}, tmp_path / "d", 4096)) as connect, pytest.raises((DeviceRefusedError, DeviceError)):
        connect(name)
    assert not list((tmp_path / "d").iterdir())


def test_there_is_an_end_to_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.serve.devices.DEVICES_MAX", 2)
    devices = Devices({}, tmp_path / "d", 4096)
    assert "data/a" in devices
    assert "data/b" in devices
    assert "data/c" not in devices
    assert "data/a" in devices
    devices.close()


def test_fixed_exports_stay_and_only_they_are_listed(base: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    system = FileExport(base)
    server = Server(Devices({"system": system}, tmp_path / "d", 4096))
    port = server.listen("127.0.0.1", 0)
    address = f"nbd://127.0.0.1:{port}"
    try:
        subprocess.run([oracle("nbdcopy"), f"{address}/system", str(tmp_path / "copy")], check=True)
        (tmp_path / "new").write_bytes(b"n" * 4096)
        subprocess.run([oracle("nbdcopy"), str(tmp_path / "new"), f"{address}/data/x"], check=True)
        listed = subprocess.run(
            [oracle("nbdinfo"), "--list", "--json", address], check=True, capture_output=True, text=True
        )
    finally:
        server.stop()
        system.close()
    assert (tmp_path / "copy").read_bytes() == base.read_bytes()
    assert (tmp_path / "d/x.data").read_bytes() == b"n" * 4096
    assert '"system"' in listed.stdout
    assert "data/x" not in listed.stdout


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    CopyOnWrite(base, tmp_path / "a.data").close()
    with base.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceError, match="its base now has"):
        CopyOnWrite(base, tmp_path / "a.data")
    with pytest.raises(ErofsEdgeError):
        CopyOnWrite(tmp_path / "none", tmp_path / "b.data")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError):
        Devices({}, tmp_path / "file", 4096)
