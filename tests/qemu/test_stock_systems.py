# SPDX-License-Identifier: Apache-2.0
"""The smallest stock system on the stock board: its size, and a boot that passes the checks of its manifest.

The larger ones have a target of their own: `make systems`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from erofs_edge.manifest.load import load_system

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1200)]


def test_edge_minimal_boots_and_passes_its_checks(edge: str, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    board = ["boards/qemu-aarch64.yaml", "-o", str(out)]
    build = [edge, "build", *board, "--system", "manifests/edge-minimal.yaml", "--relock-if-gone"]
    done = subprocess.run(build, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "system.img").stat().st_size <= 60_000_000
    log = tmp_path / "console.log"
    boot = [edge, "boot", *board, "--smoke", "--json", "--timeout", "900", "--log", str(log)]
    done = subprocess.run(boot, cwd=repository, capture_output=True, text=True, check=False)
    console = log.read_text(errors="replace") if log.exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{console[-6000:]}"
    assert json.loads(done.stdout)["stages"][-1]["stage"] == "checks"
    wanted = load_system(repository / "manifests/edge-minimal.yaml").value.smoke
    for check in (*wanted.units, *wanted.commands):
        assert f"erofs-edge: smoke ok {check}\n" in console.replace("\r", "")
