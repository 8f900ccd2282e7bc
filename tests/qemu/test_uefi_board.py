# SPDX-License-Identifier: Apache-2.0
"""The board with UEFI firmware in QEMU: AAVMF with our key, systemd-boot, unified kernel images, kernel-checked root.

`make test-boot` runs the long ones: every scenario, what a TPM measures, and that the kernel checks the root hash's
signature for itself.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tpm_emulator import machine_arguments, read_pcrs, tpm

from erofs_edge.boot.uefi import ImageName
from erofs_edge.build.signing import CERTIFICATE, ROOT_HASH_SIGNATURE
from erofs_edge.manifest.load import load_board
from erofs_edge.manifest.model import Board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.run import run
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.qemu.tamper import UEFI_TAMPERS
from erofs_edge.qemu.uefi import Esp
from erofs_edge.qemu.uefi_forge import standing
from erofs_edge.qemu.verdict import Expected, Verdict, Watch
from erofs_edge.trust.authenticode import sign_image
from erofs_edge.trust.certificate import load_certificate
from erofs_edge.trust.root_hash import parse_detached
from erofs_edge.trust.signer import open_signer

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1800)]
BOARD = "boards/generic-uefi-arm64.yaml"
NAME = "generic-uefi-arm64"
TIMEOUT = 800.0


@pytest.fixture(scope="module")
def board(repository: Path) -> Board:
    return load_board(repository / BOARD).value


def smoke(edge: str, repository: Path, out: Path, *options: str) -> dict[str, object]:
    command = [edge, "boot", BOARD, "-o", str(out), "--smoke", "--json", "--timeout", str(TIMEOUT), *options]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, object] = json.loads(done.stdout)
    return record


def boot(board: Board, out: Path, folder: Path, disk: Path, extra: tuple[str, ...] = ()) -> Verdict:
    """Boot a disk with the build's firmware until it is decided."""
    built = load_built(out)
    command = machine_command(board, built, find_qemu(), folder, Wiring(disk, extra=extra))
    return run(command, Watch(Expected(built.root_hash, "a")), Console(), timeout=TIMEOUT, seen=lambda event: None)


def test_a_good_boot_passes_every_stage(edge: str, repository: Path, stock: Callable[[str], Path]) -> None:
    record = smoke(edge, repository, stock(NAME))
    stages = [stage["stage"] for stage in record["stages"]]  # type: ignore[attr-defined]
    assert {"u-boot", "signature", "initramfs", "verity", "root", "data", "login"} <= set(stages)
    assert record["slot"] == "a"


@pytest.mark.long
def test_the_other_slot(edge: str, repository: Path, stock: Callable[[str], Path]) -> None:
    assert smoke(edge, repository, stock(NAME), "--slot", "b")["slot"] == "b"


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, tamper in UEFI_TAMPERS.items() if tamper.content != "vbmeta"])
def test_what_is_changed_is_found(name: str, edge: str, repository: Path, stock: Callable[[str], Path]) -> None:
    record = smoke(edge, repository, stock(NAME), "--tamper", name)
    stop = UEFI_TAMPERS[name].stop
    assert record["stopped_at"] == (stop.stage if stop else None)
    assert record["evidence"]


@pytest.mark.long
def test_a_tpm_holds_the_reference_values(
    board: Board, stock: Callable[[str], Path], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    out = stock(NAME)
    reference = json.loads((out / "release.json").read_text())["reference"]
    with tpm(oracle("swtpm"), tmp_path) as path:
        verdict = boot(board, out, tmp_path, out / "disk.img", machine_arguments(path))
        assert verdict.ok, verdict
        measured = read_pcrs(path, (4, 7, 11))
    assert measured == {
        4: reference["pcr4_sha256"]["boot_a.efi"],
        7: reference["pcr7_sha256"],
        11: reference["pcr11_sha256"]["boot_a.efi"][""],
    }


@pytest.mark.long
def test_a_system_that_came_up_is_counted_no_more(board: Board, stock: Callable[[str], Path], tmp_path: Path) -> None:
    out, line = stock(NAME), "erofs-edge: slot a is good"
    disk = copy_sparse(out / "disk.img", tmp_path / "disk.img")
    built = load_built(out)
    command = machine_command(board, built, find_qemu(), tmp_path, Wiring(disk, snapshot=False))
    watch = Watch(Expected(built.root_hash, "a"), lines={line})
    verdict = run(command, watch, Console((line,)), timeout=TIMEOUT, seen=lambda event: None)
    assert verdict.ok, verdict
    with Scratch(disk, board) as scratch:
        names = Esp(lambda offset, length: scratch.read("esp", offset, length)).images()
    assert set(names) == {ImageName("a", 2), ImageName("b", 1, 3)}


@pytest.mark.long
def test_the_kernel_itself_refuses_a_root_whose_signature_is_wrong(
    board: Board, stock: Callable[[str], Path], tmp_path: Path
) -> None:
    """The owner's key signs the image, so that firmware starts it; the root hash's signature in it is another."""
    out = stock(NAME)
    signer = open_signer(board.sign.key)
    certificate = load_certificate((out / CERTIFICATE).read_bytes(), signer.name)
    signature = parse_detached((out / ROOT_HASH_SIGNATURE).read_bytes()).signature
    disk = copy_sparse(out / "disk.img", tmp_path / "disk.img")
    with Scratch(disk, board, writable=True) as scratch:
        esp = Esp(lambda offset, length: scratch.read("esp", offset, length))
        entry = esp.images()[ImageName("a", 2, 3)]
        image = esp.content(entry)
        # as it is in LZ4's stream: a signature is random, all but a few bytes that may be elsewhere, too
        part = signature[standing(signature, image)]
        forged = sign_image(image.replace(part, part[:-1] + bytes([part[-1] ^ 1])), signer, certificate)
        for offset, data in esp.replaced(entry, forged):
            scratch.write("esp", offset, data)
    verdict = boot(board, out, tmp_path, disk)
    assert (verdict.ok, verdict.stage) == (False, "verity"), verdict
    assert "no mapping of" in verdict.reason
