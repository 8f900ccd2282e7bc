# SPDX-License-Identifier: Apache-2.0
"""A stick installs a board: firmware starts it, the blank disk is written and read back, then starts alone.

`make test-boot` runs it.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.installer.payload import MIB, pieces_of
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.run import run
from erofs_edge.qemu.verdict import Expected, Watch

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3600)]
BOARD = "boards/generic-uefi-arm64.yaml"
NAME = "generic-uefi-arm64"


def test_a_stick_installs_and_the_disk_starts_alone(
    edge: str,
    repository: Path,
    stock: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out, board = stock(NAME), load_board(repository / BOARD).value
    medium, disk = tmp_path / "installer.img", tmp_path / "disk.img"
    command = [edge, "installer", BOARD, "-o", str(out), "--to", str(medium)]
    made = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    built, emulator = load_built(out), find_qemu()
    with disk.open("wb") as file:
        file.truncate(built.disk.stat().st_size)
    stick = (
        "-device", "qemu-xhci",
        "-drive", f"if=none,id=stick,format=raw,readonly=on,file={medium}",
        "-device", "usb-storage,drive=stick,removable=on",
    )  # fmt: skip
    (folder := tmp_path / "first").mkdir()
    command = machine_command(board, built, emulator, folder, Wiring(disk, snapshot=False, extra=stick))
    # it ends itself, whatever becomes of it
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=1800)
    console = done.stdout.decode(errors="replace")
    found = re.search(r"erofs-edge: installer: verified (\d+) MiB on /dev/vda", console)
    assert found is not None, f"{console[-4000:]}\n{done.stderr.decode(errors='replace')}"
    with disk.open("rb") as file:
        for piece in pieces_of(built.disk):
            file.seek(piece.at * MIB)
            assert hashlib.sha256(file.read(piece.count * MIB)).hexdigest() == piece.digest, piece
    command = machine_command(board, built, emulator, tmp_path, Wiring(disk, snapshot=False))
    verdict = run(command, Watch(Expected(built.root_hash, "a")), Console(), timeout=1200, seen=lambda event: None)
    assert verdict.ok, verdict
