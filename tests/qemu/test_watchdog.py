# SPDX-License-Identifier: Apache-2.0
"""The watchdog of edge-base: a machine whose process 1 hangs starts again by itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_road import console_until

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.machine import CHECKS_DRIVE, Wiring, find_qemu

BOARD = "boards/qemu-aarch64.yaml"
DRIVERS = {"bcm2835_wdt", "i6300esb"}
# systemd that has crashed does nothing more (systemd-system.conf(5), CrashAction), and nobody feeds the watchdog
SMOKE = "smoke: {seconds: 900, units: [], commands: {rauc: null, crash: kill -SEGV 1; sleep 1000}}\n"


@pytest.mark.parametrize("name", ["qemu-aarch64", "generic-uefi-arm64", "rpi4"])
def test_its_driver_is_there_before_process_1(name: str, repository: Path) -> None:
    """One of the system is loaded by udev, long after process 1 has begun to start things that can make it hang."""
    boot = load_board(repository / f"boards/{name}.yaml").value.boot
    assert len(DRIVERS.intersection(boot.modules)) == 1 and DRIVERS.isdisjoint(boot.system_modules)


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.xdist_group("qemu")
@pytest.mark.timeout(900)
def test_a_hanging_process_1_ends_in_a_restart(edge: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "hang.yaml").write_text(f"system: hang\nextends: {repository}/manifests/edge-base.yaml\n{SMOKE}")
    shutil.copy(repository / "manifests/edge-base.lock", tmp_path / "hang.lock")
    system, out = str(tmp_path / "hang.yaml"), tmp_path / "out"
    command = [edge, "build", BOARD, "--system", system, "-o", str(out), "--relock-if-gone"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    board, built = load_board(repository / BOARD).value, load_built(out)
    devices = (*CHECKS_DRIVE, "-device", "i6300esb", "-action", "watchdog=reset")
    command = machine_command(board, built, find_qemu(), tmp_path, Wiring(built.disk, reboot=True, extra=devices))
    console = console_until(command, b"Starting kernel", count=2, seconds=800)
    _, _, second = console.partition(b"smoke ok watchdog")
    # the kernel sees that who fed the watchdog has gone; nobody asks for a restart, and there is no panic
    _, gone, restart = second.partition(b"watchdog did not stop!")
    assert gone and b"U-Boot" in restart
    assert b"reboot:" not in second and b"Kernel panic" not in second
