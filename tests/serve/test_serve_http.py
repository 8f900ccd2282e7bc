# SPDX-License-Identifier: Apache-2.0
"""A system served by engines that exist: nginx has the file, nbdkit makes a device of it by ranges of HTTP.

It is what `diskless --system http://…` makes a board do; here on this machine, with the same arguments.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from erofs_edge.diskless.place import parse_place
from erofs_edge.diskless.start import FOREVER
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.transport.nbd.connect import Connection, parse_address

Oracle = Callable[[str], str]
MIB = 1 << 20


@contextmanager
def running(command: list[str], ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            pytest.fail(f"{command[0]}: {process.stderr.read().decode() if process.stderr else ''}")
        yield process
    finally:
        process.kill()  # nbdkit would wait for its clients
        process.communicate(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _nginx(oracle: Oracle, folder: Path, port: int) -> list[str]:
    """nginx with all that it writes inside `folder`; files of `folder`/files, and a log of the ranges asked for."""
    config = folder / "nginx.conf"
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n{paths}\n"
        f"log_format ranges '$request_method $http_range $status';\naccess_log {folder}/access.log ranges;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}/files; }}\n}}\n"
    )
    return [oracle("nginx"), "-c", str(config), "-e", str(folder / "error.log")]


def _nbdkit(oracle: Oracle, socket_path: Path, uri: str) -> list[str]:
    """nbdkit with the words that the initramfs gives it."""
    (top,) = (prefix() / "roots/oracles-nbd").glob("usr/lib/*/nbdkit")
    plugin, *arguments = parse_place(uri).arguments
    words = [f"--filter={top}/filters/nbdkit-retry-filter.so", f"{top}/plugins/nbdkit-{plugin}-plugin.so"]
    return [oracle("nbdkit"), "-f", "-U", str(socket_path), *words, *arguments, *FOREVER]


@pytest.fixture
def served(tmp_path: Path, oracle: Oracle) -> Iterator[tuple[Path, Path, int]]:
    """(nginx's folder, the file that it has, its port)."""
    folder = tmp_path / "web"
    (folder / "files").mkdir(parents=True)
    image = folder / "files/system.img"
    image.write_bytes(random.Random(8).randbytes(3 * MIB + 4096))
    yield folder, image, _free_port()


def test_a_device_over_http_by_ranges(served: tuple[Path, Path, int], tmp_path: Path, oracle: Oracle) -> None:
    folder, image, port = served
    content, path = image.read_bytes(), tmp_path / "s"
    with (
        running(_nginx(oracle, folder, port), lambda: _listens(port)),
        running(_nbdkit(oracle, path, f"http://127.0.0.1:{port}/system.img"), path.exists),
    ):
        connection = Connection(parse_address(f"nbd+unix:///?socket={path}"))
        assert connection.size == len(content)
        assert connection.read(MIB + 12288, 8192) == content[MIB + 12288 : MIB + 20480]
        log = (folder / "access.log").read_text()
        assert re.search(r"^GET bytes=1060864-106905\d 206$", log, re.MULTILINE), log
        assert connection.read(0, len(content)) == content
        connection.close()


def test_a_web_server_that_is_lost_and_comes_back(
    served: tuple[Path, Path, int], tmp_path: Path, oracle: Oracle
) -> None:
    """A read that meets no server waits and then has the right bytes."""
    folder, image, port = served
    content, path = image.read_bytes(), tmp_path / "s"
    with running(_nbdkit(oracle, path, f"http://127.0.0.1:{port}/system.img"), path.exists) as nbdkit:
        with running(_nginx(oracle, folder, port), lambda: _listens(port)):
            connection = Connection(parse_address(f"nbd+unix:///?socket={path}"))
            assert connection.read(0, 4096) == content[:4096]
        assert not _listens(port)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(connection.read, MIB, MIB)
            with running(_nginx(oracle, folder, port), lambda: _listens(port)):
                assert late.result(60) == content[MIB : 2 * MIB]
        assert nbdkit.poll() is None
        connection.close()
