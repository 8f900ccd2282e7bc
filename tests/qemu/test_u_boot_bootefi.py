# SPDX-License-Identifier: Apache-2.0
"""U-Boot with preset keys as a UEFI board's firmware: the same signed kernel images, started by `bootefi`.

It is compiled (minutes) the first time. `make test-boot` runs these.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from fixed_key import fixed_key
from u_boot_alone import ADDRESS, Alone, read

from erofs_edge.boot.u_boot_vars import preset
from erofs_edge.errors import BootCheckError
from erofs_edge.manifest.load import load_board
from erofs_edge.qemu import smoke as machine
from erofs_edge.qemu import u_boot_uefi
from erofs_edge.qemu.tamper import UEFI_TAMPERS
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.certificate import load_certificate, self_signed
from erofs_edge.u_boot.compile import UEFI, Compiled, compiled
from erofs_edge.u_boot.seed import fill

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
BOARD = "boards/generic-uefi-arm64.yaml"
NAME = "generic-uefi-arm64"
TIMEOUT = 1300.0
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


@pytest.mark.parametrize("keys", ["the build's", "another's", "none"])
def test_the_place_for_keys(keys: str, stock: Callable[[str], Path], u_boot: Compiled, tmp_path: Path) -> None:
    """systemd-boot by itself, signed with the build's key: it starts where that is in db, and comes back since there is
    no disk. A place that nobody has filled takes nothing."""
    key = fixed_key(3, "product")
    program, image = (stock(NAME) / "systemd-boot.efi").read_bytes(), u_boot.image
    if keys != "none":
        build = load_certificate((stock(NAME) / "sign.crt").read_bytes(), "the build's")
        certificate = build if keys == "the build's" else self_signed(key, 0)
        image = fill(image, preset(uuid.UUID(int=1), certificate.der, [certificate.der], epoch=0))
    alone = Alone(tmp_path, stock(NAME) / "systemd-boot.efi", image, key)
    script = (
        f"{read(0, len(program))}; bootefi {ADDRESS:x}:{len(program):x} ${{fdtcontroladdr}}; echo came back; poweroff"
    )
    said = alone.run(alone.tree(script), [(0, program)])
    assert "came back" in said, said[-2000:]
    refused = "Image not authenticated" in said
    assert refused == (keys != "the build's"), said[-2000:]
    assert ("Unable to open root directory" in said) != refused, "what systemd-boot says where it has no disk"


def with_systemd_boot(
    repository: Path, out: Path, u_boot: Compiled, log: Path, tamper: str | None = None
) -> machine.SmokeRecord:
    """U-Boot starts systemd-boot, and that a slot's kernel image."""
    board = load_board(repository / BOARD).value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(u_boot_uefi, "programs", lambda images: {"a": "EFI/BOOT/BOOTAA64.EFI"})
        observer = machine.Observer(TIMEOUT, log=log)
        return machine.smoke(board, out, u_boot=u_boot.image, tamper=tamper, observer=observer)


def test_systemd_boot_starts_the_kernel_image(
    stock: Callable[[str], Path], repository: Path, u_boot: Compiled, tmp_path: Path
) -> None:
    """U-Boot verifies both. Attempts are not counted, as it renames no file."""
    record = with_systemd_boot(repository, stock(NAME), u_boot, tmp_path / "console")
    said = (tmp_path / "console").read_text(errors="replace")
    assert record.slot == "a" and "Failed to rename" in said and "Secure Boot is enabled" in said


def test_systemd_boot_starts_nothing_that_is_unsigned(
    stock: Callable[[str], Path], repository: Path, u_boot: Compiled, tmp_path: Path
) -> None:
    record = with_systemd_boot(repository, stock(NAME), u_boot, tmp_path / "console", "unsigned")
    assert record.evidence == "Image not authenticated"
    assert "BOOTAA64" in (tmp_path / "console").read_text(errors="replace"), "systemd-boot itself was started"


def test_a_systemd_boot_that_was_changed(
    stock: Callable[[str], Path], repository: Path, u_boot: Compiled, tmp_path: Path
) -> None:
    """The scenario's own stage is another, since with AAVMF nothing starts at all."""
    with pytest.raises(BootCheckError, match="no slot to start"):
        with_systemd_boot(repository, stock(NAME), u_boot, tmp_path / "console", "loader")
    assert "Image not authenticated" in (tmp_path / "console").read_text(errors="replace")
