# SPDX-License-Identifier: Apache-2.0
"""The script of a locked U-Boot that acts as UEFI firmware: load a signed program from the EFI system partition, start
it.

`bootefi` verifies the loaded program with the certificates in U-Boot's db and returns if it refuses it (U-Boot
cmd/bootefi.c, lib/efi_loader/efi_image_loader.c), so that the next one is tried. Called without a size it knows which
file was loaded last, so the program finds the disk that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping

from erofs_edge.boot.script import NO_SLOT, REFUSED, STAGE
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Board, size_bytes

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-")


def uefi_script(board: Board, programs: Mapping[str, str]) -> str:
    """The script, one command per line, ASCII. For `/config/bootcmd` of the control tree.

    programs  console name and path on the EFI system partition of each program, in the order in which they are tried:
              the slots' kernel images, or systemd-boot, which chooses between them

    Raises ManifestError if the board has no such partition or a name would need quoting in U-Boot's shell.
    """
    boot = board.boot
    name, esp = next(((n, p) for n, p in board.disk.partitions.items() if p.content == "esp"), ("", None))
    if esp is None:
        raise ManifestError(
            f"board '{board.board}' has no EFI system partition", hint="give one partition `content: esp`"
        )
    find = ["virtio scan"] if boot.storage == "virtio" else [f"mmc dev {boot.device:x}"]
    place, limit = f"{boot.storage} {boot.device:x}", size_bytes(esp.size)
    lines = [*find, f"part number {place} {name} ee_part"]
    for slot, path in programs.items():
        for word in (slot, path):
            if not set(word) <= _PLAIN:
                raise ManifestError(f"{word!r} cannot be part of a boot script")
        load = f"load {place}:${{ee_part}} {boot.load_address:x} {path} {limit:x}"
        lines += [
            f'echo "{STAGE}{slot}"',
            f"if {load}; then bootefi {boot.load_address:x} ${{fdtcontroladdr}}; fi",
            f'echo "{REFUSED}{slot}"',
        ]
    return "\n".join([*lines, f'echo "{NO_SLOT}"', "while true; do sleep 3600; done", ""])
