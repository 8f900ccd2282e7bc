# SPDX-License-Identifier: Apache-2.0
"""Our locked U-Boot instead of a UEFI board's firmware: the build's certificate is its PK, KEK and db.

It starts the slots' signed kernel images itself, in systemd-boot's order, and tries the next if it refuses one. The
list of images is read from the disk before the start, because in U-Boot 2025.01 a script can neither list nor rename
them.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from erofs_edge.boot.loader import control_tree, join
from erofs_edge.boot.u_boot_vars import preset
from erofs_edge.boot.uefi import IMAGES, ImageName
from erofs_edge.boot.uefi_script import uefi_script
from erofs_edge.boot.virt import virt_tree
from erofs_edge.build.signing import CERTIFICATE
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.model import Board, size_bytes
from erofs_edge.qemu.machine import qemu_of
from erofs_edge.trust.certificate import Certificate, load_certificate
from erofs_edge.trust.key import VerificationKey
from erofs_edge.u_boot.seed import fill

FIRMWARE = "u-boot-uefi.bin"
"""its name in a run's folder"""


def programs(images: list[ImageName]) -> dict[str, str]:
    """Slot → path on the EFI system partition, in the order of starting."""
    ordered = sorted(images, key=lambda image: (image.left != 0, image.rank), reverse=True)
    return {image.slot: f"{IMAGES}/{image}" for image in ordered}


def firmware(board: Board, program: bytes, certificate: Certificate, key: VerificationKey, script: str) -> bytes:
    """The whole boot loader: the compiled `program` with the certificate inside, followed by device tree and script.

    Raises ManifestError if the board has no machine that we support, FormatError for another program.
    """
    qemu = qemu_of(board)
    owner = uuid.UUID(bytes=bytes.fromhex(certificate.fingerprint)[:16])
    keys = preset(owner, certificate.der, [certificate.der], epoch=0)
    machine = virt_tree(cpu=qemu.cpu, memory=size_bytes(qemu.memory), cpus=qemu.smp)
    return join(fill(program, keys), control_tree(machine, key, script))


def put_firmware(
    board: Board, program: bytes, out: Path, key: VerificationKey, images: list[ImageName], folder: Path
) -> Path:
    """Write the firmware for a build in `out` to `folder`. Raises ErofsEdgeError as `firmware` does, and if the build
    has no certificate."""
    try:
        certificate = load_certificate((out / CERTIFICATE).read_bytes(), "the build's")
    except OSError as error:
        raise ErofsEdgeError(
            f"cannot read the build's certificate: {error.strerror}", where=str(out / CERTIFICATE), hint="build again"
        ) from error
    path = folder / FIRMWARE
    path.write_bytes(firmware(board, program, certificate, key, uefi_script(board, programs(images))))
    return path
