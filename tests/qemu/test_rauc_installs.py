# SPDX-License-Identifier: Apache-2.0
"""RAUC on the booted target installs our bundle into the other slot, and the board starts that.

A bundle for another board is refused before that."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(3500)]
BOARD = "boards/qemu-aarch64.yaml"
NEW = """\
system: updated
extends: edge-base
hostname: updated
smoke:
  seconds: 900
  units: []
  commands: {watchdog: null, name: "test $(hostname) = updated"}
"""
OLD = """\
system: updated
extends: edge-base
hostname: before
size_budget: {partition: 400M}
overlay+:
  - {from: bundle, to: /usr/lib/updates}
smoke:
  seconds: 1500
  units: []
  commands:
    watchdog: null
    name: test $(hostname) = before
    refused: >-
      ! rauc install /usr/lib/updates/other.raucb >/run/refused 2>&1 &&
      grep "Compatible mismatch: Expected 'qemu-aarch64-updated' but bundle manifest has 'rpi4-updated'" /run/refused
    install: >-
      systemctl is-active edge-mark-good.service && cp /usr/lib/updates/new.raucb /data/ &&
      rauc install /data/new.raucb >/run/said 2>&1 || { tail -n 5 /run/said >/dev/console; false; }
"""


def test_a_bundle_of_ours_is_installed_and_starts(edge: str, repository: Path, tmp_path: Path) -> None:
    disk, bundle = tmp_path / "board.img", tmp_path / "bundle/new.raucb"
    bundle.parent.mkdir()

    def run(*words: object) -> str:
        command = [edge, *map(str, words)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def build(name: str, manifest: str) -> Path:
        (tmp_path / f"{name}.yaml").write_text(manifest)
        shutil.copy(repository / "manifests/edge-base.lock", tmp_path / f"{name}.lock")
        out = tmp_path / name
        run("build", BOARD, "--system", tmp_path / f"{name}.yaml", "-o", out, "--relock-if-gone")
        return out

    new = build("new", NEW)
    run("bundle", "rauc", new, "--key", "dev:dev", "-o", bundle)
    run("bundle", "rauc", new, "--key", "dev:dev", "-o", bundle.parent / "other.raucb", "--compatible", "rpi4-updated")
    old = build("old", OLD)
    run("flash", old, "--to", disk)
    run("boot", BOARD, "-o", old, "--disk", disk, "--keep", "--timeout", 1800, "--log", tmp_path / "old.log")
    slots = {slot["name"]: slot for slot in json.loads(run("slots", "show", disk, "--json"))["slots"]}
    assert slots["b"]["next"] and slots["b"]["standing"] == "pending" and slots["a"]["standing"] == "good"
    said = run("boot", BOARD, "-o", new, "--disk", disk, "--keep", "--timeout", 1800, "--json")
    record = json.loads(said)
    assert record["slot"] == "b"
    assert record["root_hash"] == json.loads((new / "release.json").read_text())["system"]["root_hash"]
