# SPDX-License-Identifier: Apache-2.0
"""Mender: the commands of docs/bundles.md, run with Debian's mender-artifact; the artifact contains what was built."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.simulator.build import build_folder

pytestmark = pytest.mark.oracle


def commands(repository: Path) -> str:
    """Return the commands in that chapter, for a board and a version."""
    (block,) = re.findall(
        r"^## Mender$.*?```text\n(.*?)^```$", (repository / "docs/bundles.md").read_text(), re.M | re.S
    )
    return str(block).replace("BOARD", "simulated").replace("VERSION", "1.0")


def run(command: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_mender_takes_what_was_built(oracle: Callable[[str], str], repository: Path, edge: str, tmp_path: Path) -> None:
    path = f"{Path(oracle('mender-artifact')).parent}:{Path(edge).parent}"
    build_folder(tmp_path / "out")
    done = run(f"erofs-edge keys new owner.pem\n{commands(repository)}", tmp_path, path)
    assert done.returncode == 0, done.stderr
    for name, files in (("system", ["system.img"]), ("slot", ["boot.fit", "system.img"])):
        read = run(f"mender-artifact read -k owner.pub {name}.mender", tmp_path, path).stdout
        assert "signed and verified correctly" in read and "'[simulated]'" in read
        done = run(f"mender-artifact dump --files {name} {name}.mender", tmp_path, path)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(tmp_path / name)) == files
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    done = run("erofs-edge keys new other.pem && mender-artifact validate -k other.pub slot.mender", tmp_path, path)
    assert done.returncode != 0, "another key"
