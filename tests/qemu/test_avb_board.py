# SPDX-License-Identifier: Apache-2.0
"""A board with vbmeta partitions in QEMU: the initramfs has them checked by the kernel, and starts nothing else.

`make test-boot` runs these. What the script says to each damage is in tests/boot/test_vbmeta_script.py.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from first_boot import PATIENCE

from erofs_edge.disk.layout import partition_names
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.tamper import TAMPERS

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
NAME = "qemu-aarch64-avb"
BOARD = f"boards/{NAME}.yaml"
FORGERIES = [name for name, tamper in TAMPERS.items() if tamper.content == "vbmeta"]
Smoke = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def smoke(stock: Callable[[str], Path], edge: str, repository: Path) -> Smoke:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [edge, "boot", BOARD, "-o", str(stock(NAME)), "--smoke", "--json", "--timeout", PATIENCE, *options]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    return run


def test_what_the_build_has_signed_boots(smoke: Smoke) -> None:
    done = smoke()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert (report["dm"], report["status"]) == ("verity", "V")


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_vbmeta_stops_the_start(smoke: Smoke, name: str) -> None:
    done = smoke("--tamper", name)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    assert record["stopped_at"] == "verity"
    assert record["evidence"].startswith("erofs-edge: FAILED vbmeta: ")
    assert " vbmeta_a " in record["evidence"]


def test_the_chained_one_counts_as_much(
    smoke: Smoke, stock: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    """A bit of the hash tree's root digest, in `vbmeta_system` alone."""
    board = load_board(repository / BOARD).value
    disk = copy_sparse(stock(NAME) / "disk.img", tmp_path / "disk.img")
    root = bytes.fromhex(json.loads((stock(NAME) / "release.json").read_text())["system"]["root_hash"])
    with Scratch(disk, board, writable=True) as scratch:
        for name in partition_names("vbmeta_system", board.disk.partitions["vbmeta_system"]):
            at = scratch.read(name, 0, 4096).index(root)
            scratch.write(name, at, bytes([root[0] ^ 1]))
    done = smoke("--disk", str(disk))
    assert done.returncode == 9
    assert "vbmeta_system_a does not match its digest" in done.stderr
