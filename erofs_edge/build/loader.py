# SPDX-License-Identifier: Apache-2.0
"""The boot loader of a build: a packaged one, or a locked U-Boot compiled from Debian's source."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.boot import signed_boot
from erofs_edge.disk.fat import build_fat
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.model import Board
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.key import Signer
from erofs_edge.u_boot.compile import Compiled, compiled, input_digest
from erofs_edge.u_boot.source import REVISION
from erofs_edge.u_boot.toolchain import pinned


def loader_digest(board: Board) -> str:
    """SHA-256, in hex, of what the compiled boot loader depends on; '' for a packaged one."""
    kind = board.boot.u_boot.build
    return input_digest(kind, pinned()) if kind is not None else ""


def compiled_loader(board: Board, cache: Cache) -> Compiled | None:
    """The compiled boot loader, without key and script; None for a packaged one."""
    kind = board.boot.u_boot.build
    return compiled(kind, cache) if kind is not None else None


def refuse_open_loader(board: Board) -> None:
    """Raises ErofsEdgeError for a boot loader that also starts unsigned code: it cannot be used for a release."""
    if board.boot.u_boot.build is None and board.boot.uefi is None:
        raise ErofsEdgeError(
            f"board '{board.board}' boots with {board.boot.u_boot.package}, which leaves ways around the signature:"
            " it cannot be used for a release",
            hint="boot: {chain: u-boot-fit, u_boot: {build: qemu_arm64 or rpi_arm64}}, see docs/boot-chain.md",
        )


def loader_record(board: Board) -> dict[str, str | None]:
    """The boot loader's entry in release.json."""
    u_boot = board.boot.u_boot
    if u_boot.build is None:
        return {"package": u_boot.package, "path": u_boot.path}
    return {"build": u_boot.build, "source": REVISION, "inputs": loader_digest(board)}


def signed_image(files: dict[str, bytes], *, work: Path, signer: Signer, epoch: int) -> dict[str, bytes]:
    """A Raspberry Pi's firmware partition for signed boot: boot.img with `files` in it, boot.sig, a short config.txt.

    boot.img is left in `work` as an output of the build. Raises ErofsEdgeError for a key of the wrong size.
    """
    path = work / signed_boot.IMAGE
    serial = int(signed_boot.files_digest(files)[:8], 16)
    build_fat(files, path, size=signed_boot.image_size(files), label="BOOT", serial=serial, epoch=epoch)
    image = path.read_bytes()
    signature = signed_boot.boot_signature(image, signer, epoch)
    (work / signed_boot.SIGNATURE).write_bytes(signature)
    return {
        signed_boot.IMAGE: image,
        signed_boot.SIGNATURE: signature,
        signed_boot.CONFIG: signed_boot.OUTER_CONFIG,
    }
