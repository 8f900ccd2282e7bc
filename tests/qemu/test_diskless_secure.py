# SPDX-License-Identifier: Apache-2.0
"""A diskless start in real QEMU with TLS: our server and the board each show a certificate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from first_boot import PATIENCE

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
