# SPDX-License-Identifier: Apache-2.0
"""A board without a disk in QEMU: from a server of ours, with a disk over the network, its boot image over HTTP, and
while the server is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import reserved_port

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.diskless import Wish, diskless_smoke
from erofs_edge.qemu.scratch import copy_sparse
from erofs_edge.qemu.smoke import Observer, StageTime
from erofs_edge.trace.files import image_root_hash
from erofs_edge.trace.record import read_trace
from erofs_edge.trust.signer import open_signer

BOARD = "boards/qemu-aarch64.yaml"
TIMEOUT = 900
Stock = Callable[[str], Path]

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2400)]


def test_a_diskless_start_reads_little_and_keeps_its_data(
    stock: Stock, edge: str, repository: Path, tmp_path: Path
) -> None:
    out = stock("qemu-aarch64")
    words = [edge, "boot", BOARD, "-o", str(out), "--diskless", "--smoke", "--json", "--timeout", str(TIMEOUT)]
    trace, data = tmp_path / "trace", tmp_path / "data.img"
    done = subprocess.run(
        [*words, "--trace", str(trace), "--data", str(data)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["report"]["dm"] == "verity" and record["report"]["status"] == "V"
    assert (record["report"]["var"], record["report"]["data"]) == ("ext4:rw", "/dev/nbd1")
    assert record["bytes_read"] <= 1.1 * record["bytes_touched"]
    assert record["bytes_read"] <= 0.15 * record["image_bytes"]
    found = read_trace(trace)
    assert found.root_hash == record["root_hash"] == image_root_hash(out / "system.img")
    assert any(use.path == "/usr/lib/systemd/systemd" for use in found.files)
    # the same start again: what it read is fetched ahead, its disk is as it was
    superblock = data.read_bytes()[1024:2048]
    again = subprocess.run(
        [*words, "--prefetch", str(trace), "--data", str(data)], cwd=repository, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["requests"] < record["requests"]
    assert data.read_bytes()[1024:2048][0x68:0x78] == superblock[0x68:0x78]  # the file system's UUID


def test_the_boot_image_over_http(stock: Stock, edge: str, repository: Path, tmp_path: Path) -> None:
    """Debian's U-Boot gets it with its wget; there is no TFTP server."""
    log = tmp_path / "log"
    words = ["--diskless", "--http", "--smoke", "--json", "--timeout", str(TIMEOUT), "--log", str(log)]
    done = subprocess.run(
        [edge, "boot", BOARD, "-o", str(stock("qemu-aarch64")), *words],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["status"] == "V"
    console = log.read_bytes()
    assert b"HTTP/1.0 200 OK" in console and b"Transfer Successful" in console
    assert b"TFTP" not in console


def test_a_server_that_is_killed_during_the_start_and_comes_back(stock: Stock, edge: str, repository: Path) -> None:
    """The board's reads wait; nothing fails, nothing starts again."""
    out, lines = stock("qemu-aarch64"), list[str]()
    port = reserved_port()

    def serve() -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [edge, "serve", str(out), "--port", str(port)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert server.stderr is not None
        assert "nbd://" in server.stderr.readline()
        return server

    servers = [serve()]

    def seen(stage: StageTime) -> None:
        lines.append(stage.stage)
        if stage.stage in ("root", "switch-root"):  # as the initramfs, and as the system start to read from it
            servers[-1].send_signal(signal.SIGKILL)
            servers[-1].communicate()
            time.sleep(8)  # for that long nobody is there
            servers.append(serve())

    board = load_board(repository / BOARD)
    try:
        signer, observer = open_signer(board.value.sign.key), Observer(TIMEOUT, seen)
        record, _ = diskless_smoke(board, out, signer, wish=Wish(port=port), observer=observer)
    finally:
        servers[-1].terminate()
        servers[-1].communicate()
    assert len(servers) == 3
    assert lines.count("initramfs") == 1
    assert record.report["status"] == "V"


def test_a_diskless_board_becomes_an_installed_one(stock: Stock, repository: Path, tmp_path: Path) -> None:
    """The first start installs while it runs; the second reads nothing over the network."""
    out, board = stock("qemu-aarch64"), load_board(repository / BOARD)
    signer = open_signer(board.value.sign.key)
    disk = copy_sparse(out / "disk.img", tmp_path / "disk.img")
    with disk.open("r+b") as file:  # a board that had something else there
        start = json.loads((out / "release.json").read_text())["partitions"]["system_a"]["start"]
        file.seek(start)
        file.write(random.Random(1).randbytes(8 << 20))
    installed = "the system is installed on /dev/vda"
    first, _ = diskless_smoke(board, out, signer, wish=Wish(disk=disk, lines=(installed,)), observer=Observer(TIMEOUT))
    assert first.bytes_read > first.image_bytes
    wish = Wish(disk=disk, lines=("the system is the one that is installed on /dev/vda",))
    second, _ = diskless_smoke(board, out, signer, wish=wish, observer=Observer(TIMEOUT))
    assert second.bytes_read == second.requests == 0
    assert second.report["roothash"] == first.root_hash
