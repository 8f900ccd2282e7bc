# SPDX-License-Identifier: Apache-2.0
"""A guest whose disk, arguments and host nobody trusts: QEMU starts a slot's kernel image directly, a TPM measures.

What the TPM holds must be what release.json says: 32 bytes that vouch for kernel, initramfs, arguments and, by the root
hash in the initramfs, for every block of the disk. `make test-boot` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tpm_emulator import machine_arguments, read_pcrs, tpm

from erofs_edge.manifest.load import load_board
from erofs_edge.qemu.built import load_built, machine_command
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.machine import Wiring, find_qemu
from erofs_edge.qemu.run import run
from erofs_edge.qemu.verdict import Expected, Watch

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(1500)]
BOARD = "boards/generic-uefi-arm64.yaml"
NAME = "generic-uefi-arm64"
HOSTILE = "erofs_edge.slot=b init=/bin/sh"
"""arguments that a host adds: the image has its own, and with secure boot systemd's stub takes no others"""


def test_a_guest_that_was_started_directly_shows_the_reference_values(
    repository: Path,
    stock: Callable[[str], Path],
    tmp_path: Path,
    oracle: Callable[[str], str],
) -> None:
    out, board = stock(NAME), load_board(repository / BOARD).value
    built, image = load_built(out), out / "boot_a.efi"
    reference = json.loads((out / "release.json").read_text())["reference"]
    with tpm(oracle("swtpm"), tmp_path) as path:
        extra = (*machine_arguments(path), "-kernel", str(image), "-append", HOSTILE)
        command = machine_command(board, built, find_qemu(), tmp_path, Wiring(built.disk, extra=extra))
        watch = Watch(Expected(built.root_hash, "a"))
        verdict = run(command, watch, Console(), timeout=1200, seen=lambda event: None)
        assert verdict.ok, verdict
        measured = read_pcrs(path, (4, 7, 11))
    assert measured == {
        4: reference["pcr4_direct_sha256"]["boot_a.efi"],
        7: reference["pcr7_sha256"],
        11: reference["pcr11_sha256"]["boot_a.efi"][""],
    }
    for values in ("pcr4_direct_sha256", "pcr11_sha256"):
        assert reference[values]["boot_a.efi"] != reference[values]["boot_b.efi"], "another image, another measurement"
    assert reference["pcr4_direct_sha256"] != reference["pcr4_sha256"]
