# SPDX-License-Identifier: Apache-2.0
"""A slot that no other slot can mend, in real QEMU: what is damaged comes from a web server on the host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from test_road import console_until

from erofs_edge.disk import slots
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu import forge
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.web import served

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3000)]
HOST = "10.0.2.2"
"""the host, in a network of QEMU's own"""
CARD = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=")


@contextmanager
def server() -> Iterator[tuple[int, list[str], dict[str, Path]]]:
    """A web server that gives ranges: its port, what it was asked for, and its files by path."""
    asked: list[str] = []
    files: dict[str, Path] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Range']}")
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            if self.path not in files or found is None:
                self.send_error(404)
                return
            with files[self.path].open("rb") as file:
                file.seek(int(found[1]))
                data = file.read(int(found[2]) + 1 - int(found[1]))
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as port:
        yield port, asked, files


def test_what_both_slots_have_lost_comes_from_a_web_server(edge: str, repository: Path, tmp_path: Path) -> None:
    with server() as (port, asked, files):
        path, out = tmp_path / "far.yaml", tmp_path / "out"
        path.write_text(
            f"board: far\nextends: {repository}/boards/qemu-aarch64.yaml\n"
            f'verity: {{repair_from: "http://{HOST}:{port}/{{root_hash}}.img"}}\n'
        )
        for command in (["lock", path], ["build", path, "-o", out, "--relock-if-gone"]):
            done = subprocess.run([edge, *map(str, command)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        board, built = load_board(path).value, load_built(out)
        files[f"/{built.root_hash}.img"] = out / "system.img"
        disk = copy_sparse(built.disk, tmp_path / "disk.img")
        with Scratch(disk, board, writable=True) as scratch:
            scratch.put_state(slots.activate(slots.mark(scratch.state(), "a", "good"), "b"))
            changes = forge.in_init(forge.Target(board, lambda at, length: scratch.read("system_b", at, length)))
            for change in changes:
                for slot in "ab":
                    scratch.write(f"system_{slot}", change.offset, change.data)
            damaged = scratch.read("system_b", 0, (out / "system.img").stat().st_size)
        assert damaged != (out / "system.img").read_bytes()
        machine = machine_command(
            board, built, find_qemu(), tmp_path, Wiring(disk, snapshot=False, reboot=True, extra=CARD)
        )
        console = console_until(machine, b"erofs-edge: slot b is good", seconds=1800)
    first, _, second = console.partition(b"is corrupted")
    assert b"repaired" not in first
    mended = re.search(rb"erofs-edge: (\d+) blocks of slot b were repaired from 10.0.2.2", second)
    assert mended and int(mended[1]) == 1 and b"from slot a" not in console
    block = changes[0].offset // 4096 * 4096
    assert asked == [f"/{built.root_hash}.img bytes={block}-{block + 4095}"]
    with Scratch(disk, board) as scratch:
        assert scratch.read("system_b", block, 4096) == (out / "system.img").read_bytes()[block : block + 4096]
        assert scratch.read("system_a", block, 4096) == damaged[block : block + 4096]
