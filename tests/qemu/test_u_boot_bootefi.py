# SPDX-License-Identifier: Apache-2.0
"""U-Boot with preset keys as a UEFI board's firmware: the same signed kernel images, started by `bootefi`.

It is compiled (minutes) the first time. `make test-boot` runs these.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.qemu.tamper import UEFI_TAMPERS
from erofs_edge.sources.cache import Cache
from erofs_edge.u_boot.compile import UEFI, Compiled, compiled

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
BOARD = "boards/generic-uefi-arm64.yaml"
NAME = "generic-uefi-arm64"
TIMEOUT = 500.0
FORGERIES = [name for name, tamper in UEFI_TAMPERS.items() if tamper.content == "esp" and name != "loader"]


@pytest.fixture(scope="module")
def u_boot() -> Compiled:
    return compiled(UEFI, Cache())


def smoke(edge: str, repository: Path, out: Path, *options: str) -> dict[str, object]:
    command = [edge, "boot", BOARD, "-o", str(out), "--u-boot", "--json", "--timeout", str(TIMEOUT), *options]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, object] = json.loads(done.stdout)
    return record


@pytest.mark.parametrize("slot", ["a", "b"])
def test_the_signed_images_start(
    slot: str, edge: str, repository: Path, stock: Callable[[str], Path], u_boot: Compiled
) -> None:
    record = smoke(edge, repository, stock(NAME), "--slot", slot)
    stages = [stage["stage"] for stage in record["stages"]]  # type: ignore[attr-defined]
    assert {"u-boot", "slot", "signature", "initramfs", "verity", "root", "data", "login"} <= set(stages)
    assert record["slot"] == slot


@pytest.mark.parametrize("name", [*FORGERIES, "downgrade"])
def test_what_is_changed_does_not_start(
    name: str, edge: str, repository: Path, stock: Callable[[str], Path], u_boot: Compiled
) -> None:
    record = smoke(edge, repository, stock(NAME), "--tamper", name)
    stop = UEFI_TAMPERS[name].stop
    assert stop is not None and record["stopped_at"] == stop.stage
    assert record["evidence"] == "Image not authenticated" or name == "downgrade"
