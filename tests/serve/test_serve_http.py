# SPDX-License-Identifier: Apache-2.0
"""A system served by engines that exist: nginx has the file, nbdkit makes a device of it by ranges of HTTP.

It is what `diskless --system http://…` makes a board do; here on this machine, with the same arguments.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import eventually, listens, reserved_port, wait_for

from erofs_edge.diskless.place import parse_place
from erofs_edge.diskless.start import FOREVER
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.transport.nbd.connect import Connection, parse_address

Oracle = Callable[[str], str]
MIB = 1 << 20


@contextmanager
def running(command: list[str], where: int | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(process, where)
        yield process
    finally:
        process.kill()  # nbdkit would wait for its clients
        process.wait(60)


def _nginx(oracle: Oracle, folder: Path, port: int) -> list[str]:
    """nginx with all that it writes inside `folder`; files of `folder`/files, and a log of the ranges asked for."""
    config = folder / "nginx.conf"
    paths = "\n".join(
        f"{name}_temp_path '{folder}/{name}';" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid '{folder}/pid'; error_log '{folder}/error.log';\nevents {{}}\n"
        f"http {{\n{paths}\n"
        f"log_format ranges '$request_method $http_range $status';\naccess_log '{folder}/access.log' ranges;\n"
        f"server {{ listen 127.0.0.1:{port}; root '{folder}/files'; }}\n}}\n"
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
    yield folder, image, reserved_port()


def test_a_device_over_http_by_ranges(served: tuple[Path, Path, int], tmp_path: Path, oracle: Oracle) -> None:
    folder, image, port = served
    content, path = image.read_bytes(), tmp_path / "s"
    with (
        running(_nginx(oracle, folder, port), port),
        running(_nbdkit(oracle, path, f"http://127.0.0.1:{port}/system.img"), path),
    ):
        connection = Connection(parse_address(f"nbd+unix:///?socket={path}"))
        assert connection.size == len(content)
        assert connection.read(MIB + 12288, 8192) == content[MIB + 12288 : MIB + 20480]
        asked, log = re.compile(r"^GET bytes=1060864-106905\d 206$", re.MULTILINE), folder / "access.log"
        assert eventually(lambda: asked.search(log.read_text()) is not None), log.read_text()  # nginx sends, then logs
        assert connection.read(0, len(content)) == content
        connection.close()


def test_a_web_server_that_is_lost_and_comes_back(
    served: tuple[Path, Path, int], tmp_path: Path, oracle: Oracle
) -> None:
    """A read that meets no server waits and then has the right bytes."""
    folder, image, port = served
    content, path = image.read_bytes(), tmp_path / "s"
    with running(_nbdkit(oracle, path, f"http://127.0.0.1:{port}/system.img"), path) as nbdkit:
        with running(_nginx(oracle, folder, port), port):
            connection = Connection(parse_address(f"nbd+unix:///?socket={path}"))
            assert connection.read(0, 4096) == content[:4096]
        assert not listens(port)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(connection.read, MIB, MIB)
            with running(_nginx(oracle, folder, port), port):
                assert late.result(60) == content[MIB : 2 * MIB]
        assert nbdkit.poll() is None
        connection.close()
