# SPDX-License-Identifier: Apache-2.0
"""`serve` where something is in its way: options that mean nothing, socket files, devices' disks that cannot be."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError
from erofs_edge.serve.devices import Devices
from erofs_edge.serve.server import Server
from erofs_edge.transport.nbd.connect import Connection, parse_address


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"i" * 8192)
    return path


@contextmanager
def running(*command: str) -> Iterator[str]:
    """The first line that the server says, while it runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process.stderr.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device-disk", "5M"], "--device-disk needs --devices"),
        (["--devices", "d", "--device-disk", "0"], "at least one"),
        (["--devices", "d", "--device-disk", "5001"], "whole sectors of 512 bytes"),
        (["--tls-certificate", "CERTIFICATE"], "--tls-key"),
    ],
)
def test_options_that_mean_nothing(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    certificate = tmp_path / "certificate"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    arguments = [str(certificate) if word == "CERTIFICATE" else word for word in options]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["serve", str(image), "--port", "0", *arguments])
    assert result.exit_code
    assert words in result.output


def test_an_address_of_ipv6_is_a_uri(image: Path, edge: str) -> None:
    with running(edge, "serve", str(image), "--bind", "::1", "--port", "0") as uri:
        assert uri.startswith("nbd://[::1]:")
        connection = Connection(parse_address(uri))
        assert connection.read(0, 5) == b"iiiii"
        connection.close()


def test_a_socket_file_that_a_killed_server_left_makes_way(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    server = Server({})
    server.listen_unix(path)
    try:
        with pytest.raises(DeviceError, match="in use") as refused:
            Server({}).listen_unix(path)
        assert refused.value.hint
    finally:
        server.stop()
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    with pytest.raises(DeviceError, match="in use"):
        Server({}).listen_unix(file)
    assert file.read_bytes() == b"mine"


def test_the_operator_is_told_of_a_disk_that_cannot_be_had(image: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "d", list[str]()
    devices = Devices({}, folder, image)
    (folder / "old.data").write_bytes(bytes(512))  # of a base that was smaller
    (folder / "odd.data").mkdir()
    server = Server(devices, say=said.append)
    port = server.listen("127.0.0.1", 0)
    try:
        for name in ("old", "old", "odd"):
            with pytest.raises(DeviceError, match="no export"):
                Connection(parse_address(f"nbd://127.0.0.1:{port}/data/{name}"))
        Connection(parse_address(f"nbd://127.0.0.1:{port}/data/new")).close()
    finally:
        server.stop()
        devices.close()
    for attempt in said[:2]:
        assert "export data/old" in attempt and "new --devices folder" in attempt, "the first left no lock behind"
    assert "odd.data" in "".join(said[2:])
