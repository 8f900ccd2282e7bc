# SPDX-License-Identifier: Apache-2.0
"""The board with UEFI firmware, without a disk: AAVMF gets its kernel image by TFTP, and checks who signed it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.errors import BootCheckError
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.diskless import diskless_smoke
from erofs_edge.qemu.smoke import Observer
from erofs_edge.trust.signer import open_signer

BOARD, NAME = "boards/generic-uefi-arm64.yaml", "generic-uefi-arm64"
TIMEOUT = 900.0

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2000)]


def test_firmware_starts_what_is_signed(edge: str, repository: Path, stock: Callable[[str], Path]) -> None:
    words = ["--diskless", "--smoke", "--json", "--timeout", str(TIMEOUT)]
    done = subprocess.run(
        [edge, "boot", BOARD, "-o", str(stock(NAME)), *words],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {"u-boot", "signature", "initramfs", "verity", "login"} <= {stage["stage"] for stage in record["stages"]}
    assert (record["report"]["dm"], record["report"]["status"]) == ("verity", "V")
    assert 0 < record["bytes_read"] < 0.2 * record["image_bytes"]


def test_firmware_refuses_what_another_key_has_signed(repository: Path, stock: Callable[[str], Path]) -> None:
    board = load_board(repository / BOARD)
    with pytest.raises(BootCheckError) as caught:
        diskless_smoke(board, stock(NAME), open_signer("dev:another"), observer=Observer(TIMEOUT))
    assert "Access Denied" in str(caught.value)
