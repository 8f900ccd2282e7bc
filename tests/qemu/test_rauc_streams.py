# SPDX-License-Identifier: Apache-2.0
"""RAUC on the booted target streams our bundle from a web server: bytes read, against those of our own plan."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from test_network_repair import CARD, HOST
from test_road import console_until

from erofs_edge.build.contents import read_contents
from erofs_edge.disk.gpt import decode
from erofs_edge.erofs import open as open_image
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.web import served

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3500)]
BOARD = "boards/qemu-aarch64.yaml"
BLOCK = 4096
MOST = 1.3
"""bytes that RAUC reads, to those of blocks that are new to the device: 1.28 was seen with the default payload blocks
of 16 KiB; 1.34 while dm-verity fetched 256 KiB of hashes at once; 2.54 with read-ahead and payload blocks of 64 KiB"""
UPDATED = ("iproute2", "libnftables1", "ncurses-bin", "perl-base", "procps", "tzdata")
"""packages with other contents in the update: an eighth of the system, in pieces all over it"""
MANIFEST = """\
system: streamed
extends: edge-base
hostname: {name}
size_budget: {{partition: 400M}}
overlay+:
  - {{from: {name}-files, to: /}}
{more}"""
ENABLED = "units:\n  enable+: [stream.service]\n"
UNIT = """\
[Unit]
Description=Install what the web server has
After=edge-mark-good.service rauc.service
[Service]
Type=oneshot
StandardOutput=journal+console
StandardError=journal+console
ExecStartPre=/usr/lib/systemd/systemd-networkd-wait-online --timeout=1200
ExecStart=/usr/bin/rauc install http://{host}:{port}/new.raucb
ExecStartPost=/usr/bin/systemctl --no-block reboot
FailureAction=poweroff
[Install]
WantedBy=multi-user.target
"""


@contextmanager
def counted(folder: Path) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """A web server that gives ranges of the folder's files: its port, and ranges that were sent (start, length)."""
    sent: list[tuple[int, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = folder / Path(self.path).name
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            if not path.is_file() or found is None:
                self.send_error(404)
                return
            size, first = path.stat().st_size, int(found[1])
            with path.open("rb") as file:
                data = os.pread(file.fileno(), int(found[2]) + 1 - first, first)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            sent.append((first, len(data)))

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as port:
        yield port, sent


def other_contents(out: Path, target: Path) -> int:
    """Files of UPDATED in a build, each of the same size, other bytes all over it; their bytes together."""
    origins = read_contents(out)["paths"]
    wanted = {path for name in UPDATED for path in origins[f"package {name}"]}
    total, seen = 0, set()
    with open_image(out / "system.img") as image:
        for raw, inode in image.walk():
            path = "/" + os.fsdecode(raw).lstrip("/")
            if path not in wanted or not stat.S_ISREG(inode.mode) or inode.nid in seen:
                continue
            seen.add(inode.nid)
            data = bytearray(image.read(inode, 0, inode.size))
            data[::512] = bytes(byte ^ 0x55 for byte in data[::512])
            file = target / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            total += len(data)
    return total


def new_bytes(device: list[Path], files: list[Path]) -> int:
    """What our own plan reads: blocks of the files that the device has nowhere."""
    have = {block for path in device for block in blocks(path)}
    return len({block for path in files for block in blocks(path)} - have) * BLOCK


def blocks(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    return (data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK))


def test_a_streamed_bundle_reads_hardly_more_than_our_plan(edge: str, repository: Path, tmp_path: Path) -> None:
    web, disk = tmp_path / "web", tmp_path / "board.img"
    web.mkdir()

    def run(*words: object) -> None:
        command = [edge, *map(str, words)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def build(name: str, more: str = "", *words: object) -> Path:
        (tmp_path / f"{name}.yaml").write_text(MANIFEST.format(name=name, more=more))
        shutil.copy(repository / "manifests/edge-base.lock", tmp_path / f"{name}.lock")
        out = tmp_path / name
        run("build", BOARD, "--system", tmp_path / f"{name}.yaml", "-o", out, "--relock-if-gone", *words)
        return out

    with counted(web) as (port, sent):
        unit = tmp_path / "before-files/etc/systemd/system/stream.service"
        unit.parent.mkdir(parents=True)
        unit.write_text(UNIT.format(host=HOST, port=port))
        old = build("before", ENABLED)
        assert other_contents(old, tmp_path / "after-files") > 10_000_000
        new = build("after", "", "--baseline", old)
        run("bundle", "rauc", new, "--key", "dev:dev", "-o", web / "new.raucb")
        run("flash", old, "--to", disk)
        built = load_built(new)
        machine = machine_command(
            load_board(repository / BOARD).value, load_built(old), find_qemu(), tmp_path,
            Wiring(disk, snapshot=False, reboot=True, extra=CARD),
        )  # fmt: skip
        console_until(machine, b"erofs-edge: slot b is good", seconds=3000)
    assert_slot(disk, "system_b", new / "system.img")
    assert_slot(disk, "boot_b", new / "boot.fit")
    assert built.root_hash != load_built(old).root_hash
    read = sum(length for _, length in sent)
    plan = new_bytes([old / "system.img", old / "boot.fit"], [new / "system.img", new / "boot.fit"])
    told = f"{read} bytes in {len(sent)} requests, the plan has {plan}: {read / plan:.3f}x"
    assert read <= MOST * plan, told


def assert_slot(disk: Path, partition: str, file: Path) -> None:
    """The partition starts with the file."""
    with disk.open("rb") as handle:
        table = decode(lambda at, size: os.pread(handle.fileno(), size, at), disk.stat().st_size, 512)
        (found,) = [one for one in table.partitions if one.name == partition]
        data = file.read_bytes()
        assert os.pread(handle.fileno(), len(data), found.first_lba * 512) == data, partition
