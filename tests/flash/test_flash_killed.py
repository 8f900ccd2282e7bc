# SPDX-License-Identifier: Apache-2.0
"""`flash` is killed (SIGKILL) at one of its writes: the board still starts, and the same command completes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweep import started

from erofs_edge.simulator.images import disk_image

KILLED = """
import os, signal, sys
from erofs_edge.cli.main import main
from erofs_edge.flash.local import FileTarget
real, left = FileTarget.write, int(sys.argv.pop(1))
def write(self, offset, data):
    global left
    left -= 1
    if left < 0:
        real(self, offset, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, offset, data)
FileTarget.write = write
main()
"""


@pytest.mark.parametrize("writes", [0, 1, 4, 5, 6, 8, 10])
def test_the_same_command_completes(writes: int, tmp_path: Path, edge: str) -> None:
    v1, v2 = (disk_image(tmp_path / f"v{n}.img", n) for n in (1, 2))
    roots = {n: found.root_hash for n, path in ((1, v1), (2, v2)) if (found := started(bytearray(path.read_bytes())))}
    card = tmp_path / "card.img"
    card.write_bytes(v1.read_bytes())
    words = ["flash", str(v2), "--to", str(card)]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(writes), *words], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    found = started(bytearray(card.read_bytes()))
    assert found is not None and found.root_hash in roots.values()
    shown = subprocess.run([edge, "slots", "show", str(card), "--json"], capture_output=True, check=True, text=True)
    unfinished = json.loads(shown.stdout)["under_way"]
    assert unfinished is None or unfinished["slot"] == "b"
    again = subprocess.run([edge, *words], capture_output=True, check=True, text=True)
    assert ("was left half written" in again.stderr) == (unfinished is not None)
    found = started(bytearray(card.read_bytes()))
    assert found is not None and (found.slot, found.root_hash) == ("B", roots[2])
