# SPDX-License-Identifier: Apache-2.0
"""RAUC on the booted target and `slots show` on the host read the same variables, and say the same of each slot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3000)]
BOARD = "boards/qemu-aarch64.yaml"
TOLD = "erofs-edge-rauc: "
MANIFEST = f"""\
system: told
extends: edge-base
smoke:
  seconds: 900
  units: []
  commands:
    watchdog: null
    rauc: >-
      systemctl is-active edge-mark-good.service && rauc status --output-format=json >/run/rauc.json &&
      printf '\\n{TOLD}%s\\n' "$(tr -d '\\n' </run/rauc.json)" >/dev/console
"""


def rauc_says(console: str) -> dict[str, Any]:
    """booted and primary slot as boot names, and boot name → 'good' or 'bad'."""
    found = re.findall(rf"{TOLD}(\{{.*\}})", console)
    status = json.loads(found[-1])
    slots = {name: slot for entry in status["slots"] for name, slot in entry.items() if slot.get("bootname")}
    return {
        "booted": status["booted"],
        "primary": slots[status["boot_primary"]]["bootname"],
        "slots": {slot["bootname"]: slot["boot_status"] for slot in slots.values()},
    }


def test_rauc_status_agrees_with_slots_show(edge: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(MANIFEST)
    shutil.copy(repository / "manifests/edge-base.lock", tmp_path / "told.lock")
    out, disk, log = tmp_path / "out", tmp_path / "board.img", tmp_path / "console.log"

    def run(*words: object) -> str:
        command = [edge, *map(str, words)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown() -> dict[str, Any]:
        record = json.loads(run("slots", "show", disk, "--json"))
        return {slot["name"].upper(): slot for slot in record["slots"]}

    run("build", BOARD, "--system", tmp_path / "told.yaml", "-o", out, "--relock-if-gone")
    run("flash", out, "--to", disk)
    for marks in ([], [("b", "bad")]):
        for slot, standing in marks:
            run("slots", "mark", disk, slot, standing)
        run("boot", BOARD, "-o", out, "--disk", disk, "--keep", "--timeout", 1200, "--log", log)
        told, ours = rauc_says(log.read_text(errors="replace")), shown()
        assert told["slots"] == {name: "bad" if slot["standing"] == "bad" else "good" for name, slot in ours.items()}
        assert told["booted"] == told["primary"] == next(name for name, slot in ours.items() if slot["next"]) == "A"
        assert ours["A"]["standing"] == "good" and (ours["B"]["standing"] == "bad") == bool(marks)
