# SPDX-License-Identifier: Apache-2.0
"""What a machine needs from a build's output folder, and the command that starts it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erofs_edge.boot.loader import replace_script
from erofs_edge.boot.script import boot_script
from erofs_edge.boot.uefi import CODE
from erofs_edge.build.record import RELEASE, read_release
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.model import Board
from erofs_edge.manifest.shaping import Smoke
from erofs_edge.qemu.machine import Emulator, Wiring, boot_arguments, control_tree, dump_tree, qemu_of
from erofs_edge.qemu.uefi import flash_images, uefi_arguments
from erofs_edge.trust.signer import PublicKey, read_public_key
from erofs_edge.writing import scratch_folder

RUN_PREFIX = ".run-"


@dataclass(frozen=True, slots=True)
class Built:
    """A board's build.

    u_boot     the machine's firmware: U-Boot, or UEFI's code
    root_hash  hex, of its system
    smoke      what a test boot must show of its system (manifest's `smoke`)
    """

    disk: Path
    u_boot: Path
    key: PublicKey
    root_hash: str
    smoke: Smoke


def load_built(out: Path) -> Built:
    """Load the build in an output folder. Raises ErofsEdgeError if something is missing or damaged."""
    release = read_release(out)
    try:
        key_name, root_hash = release["sign"]["name"], release["system"]["root_hash"]
        smoke = msgspec.convert(release["system"].get("smoke", {}), Smoke)
    except (TypeError, msgspec.ValidationError) as error:
        raise ErofsEdgeError(
            f"the release record is damaged: {error}", where=str(out / RELEASE), hint="build again"
        ) from None
    loader = CODE if (out / CODE).exists() else "u-boot.bin"
    for name in ("disk.img", loader):
        if not (out / name).is_file():
            raise ErofsEdgeError(f"{name} is not there", where=str(out), hint=f"erofs-edge build BOARD -o {out}")
    key = read_public_key(out / "sign.pub.pem", key_name)
    return Built(out / "disk.img", out / loader, key, root_hash, smoke)


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside the build, where there is room for a disk; elsewhere if that cannot be written.

    Folders left by killed runs are removed: their locks are free.
    """
    with ExitStack() as stack:
        try:
            with _locked(out):  # so that none is removed between its creation and its locking
                for left in out.glob(f"{RUN_PREFIX}*"):
                    with suppress(OSError), _locked(left, fcntl.LOCK_NB):
                        shutil.rmtree(left, ignore_errors=True)
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=RUN_PREFIX, dir=out))
                stack.enter_context(_locked(Path(folder)))
        except OSError:
            folder = str(stack.enter_context(scratch_folder("qemu")))
        yield Path(folder)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Hold a folder's lock. Raises OSError, and with LOCK_NB also if someone else holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(handle)


def machine_command(
    board: Board,
    built: Built,
    emulator: Emulator,
    folder: Path,
    wiring: Wiring,
    *,
    script: Callable[[str], str] | None = None,
    firmware: Path | None = None,
) -> list[str]:
    """The command that starts a built board; the files that it needs are written to `folder`.

    Debian's U-Boot is passed a control tree with the key and the script; ours contains them.

    script    changes the boot script, for tests
    firmware  a whole boot loader (`u_boot_uefi.py`) instead of the build's UEFI firmware
    """
    qemu = qemu_of(board)
    if board.boot.uefi is not None and firmware is None:
        code, variables = flash_images(built.u_boot, folder)
        return [str(emulator.program), *uefi_arguments(qemu, code, variables, wiring)]
    bios, control = (firmware, None) if firmware is not None else _u_boot(board, built, emulator, folder, script)
    return [str(emulator.program), *boot_arguments(qemu, bios, control, wiring)]


def _u_boot(
    board: Board, built: Built, emulator: Emulator, folder: Path, script: Callable[[str], str] | None
) -> tuple[Path, Path | None]:
    """(U-Boot, the control tree passed to it; None for ours, which contains it)."""
    text = script(boot_script(board)) if script else boot_script(board)
    if board.boot.u_boot.build is None:
        control = folder / "control.dtb"
        control.write_bytes(control_tree(dump_tree(emulator, qemu_of(board), built.u_boot), built.key, text))
        return built.u_boot, control
    if script is None:
        return built.u_boot, None
    bios = folder / "u-boot.bin"
    bios.write_bytes(replace_script(built.u_boot.read_bytes(), text))
    return bios, None
