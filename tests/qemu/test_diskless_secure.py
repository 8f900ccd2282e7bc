# SPDX-License-Identifier: Apache-2.0
"""Diskless starts in real QEMU with TLS: from our server, where both sides show a certificate; by ranges of HTTPS."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
from first_boot import PATIENCE

from erofs_edge.diskless.place import parse_place
from erofs_edge.manifest.load import load_board
from erofs_edge.provision.credentials import AUTHORITY, SERVER, make_credentials, write_credentials
from erofs_edge.qemu.diskless import GATEWAY, Wish, diskless_smoke
from erofs_edge.qemu.smoke import Observer
from erofs_edge.qemu.web import served
from erofs_edge.trust.signer import open_signer

BOARD = "boards/qemu-aarch64.yaml"

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2400)]


def test_a_diskless_start_with_tls(stock: Callable[[str], Path], edge: str, repository: Path, tmp_path: Path) -> None:
    """Its disk for data comes over the same server."""
    out, data = stock("qemu-aarch64"), tmp_path / "data.img"
    words = ["--diskless", "--smoke", "--tls", "--data", str(data), "--json", "--timeout", PATIENCE]
    done = subprocess.run(
        [edge, "boot", BOARD, "-o", str(out), *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["report"]["dm"] == "verity" and record["report"]["status"] == "V"
    assert record["report"]["data"] == "/dev/nbd1"
    assert 0 < record["bytes_read"] < record["image_bytes"]
    assert any(data.read_bytes()[1024:2048]), "a file system was made there"


def test_a_diskless_start_by_ranges_of_https(stock: Callable[[str], Path], repository: Path, tmp_path: Path) -> None:
    out, board, tls = stock("qemu-aarch64"), load_board(repository / BOARD), tmp_path / "tls"
    made = make_credentials(GATEWAY)
    write_credentials(tls, made)
    with web_server(out / "system.img", tls) as port:
        place = parse_place(f"https://{GATEWAY}:{port}/system.img")
        wish = Wish(system=place, certificates={AUTHORITY: made[AUTHORITY]})
        record, _ = diskless_smoke(
            board, out, open_signer(board.value.sign.key), wish=wish, observer=Observer(float(PATIENCE))
        )  # fmt: skip
    assert record.report["dm"] == "verity" and record.report["status"] == "V"
    assert record.requests == 0, "nothing came from our own server"
    sent = sum(end - start for start, end in Ranges.sent)
    assert 0 < sent < (out / "system.img").stat().st_size


class Ranges(BaseHTTPRequestHandler):
    """One file, and of it what is asked for."""

    protocol_version = "HTTP/1.1"
    file: Path
    sent: ClassVar[list[tuple[int, int]]] = []

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(self.file.stat().st_size))
        self.end_headers()

    def do_GET(self) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1
        with self.file.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{self.file.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.sent.append((start, start + len(data)))

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def web_server(file: Path, tls: Path) -> Iterator[int]:
    """HTTPS on a port of this machine."""
    Ranges.file = file
    Ranges.sent.clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / SERVER[0], tls / SERVER[1])
    with served(Ranges, context) as port:
        yield port
