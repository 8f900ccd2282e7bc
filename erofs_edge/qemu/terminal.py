# SPDX-License-Identifier: Apache-2.0
"""Boot a built board at the terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from erofs_edge.errors import ToolError
from erofs_edge.manifest.model import Board
from erofs_edge.qemu.built import load_built, machine_command, run_folder
from erofs_edge.qemu.machine import MENDS, Wiring, find_qemu
from erofs_edge.qemu.scratch import Scratch, copy_sparse
from erofs_edge.toolbox.emulator import death_with_parent

END = 20.0  # seconds for QEMU to exit by itself


def terminal(
    board: Board,
    out: Path,
    *,
    disk: Path | None = None,
    slot: str | None = None,
    forwards: tuple[tuple[int, int], ...] = (),
    say: Callable[[str], None],
) -> None:
    """Connect the terminal to a board until it is powered off or Ctrl-A X.

    disk      boot this image and keep what is written to it, including the choice of `slot`; None boots the build's own
              image and discards all changes
    forwards  (host port, guest port) of TCP connections

    Raises ErofsEdgeError if `out` contains no build, ToolError without a usable QEMU or if it fails.
    """
    built = load_built(out)
    emulator = find_qemu()
    with run_folder(out) as folder:
        image = disk or built.disk
        if slot is not None:
            image = image if disk else copy_sparse(image, folder / "disk.img")
        with Scratch(image, board, writable=slot is not None) as scratch:
            if slot is not None:
                scratch.activate(slot)
            chosen = scratch.next_slot()
        wiring = Wiring(image, snapshot=disk is None, serial="mon:stdio", forwards=forwards, reboot=True)
        command = machine_command(board, built, emulator, folder, wiring)
        kept = f"changes are kept in {disk}" if disk else "changes to the disk are discarded at the end"
        say(f"QEMU {emulator.version_text}, slot {chosen}. Ctrl-A X quits; {kept}.")
        code = _run(command)
    if code:
        raise ToolError(f"QEMU ended with exit code {code}", where=command[0])


def _run(command: list[str]) -> int:
    """Run QEMU at our terminal; the exit code. It dies with this process. If an exception ends the wait, QEMU has time
    to flush and to give the terminal back its settings."""
    try:
        machine = subprocess.Popen(command, preexec_fn=death_with_parent())  # noqa: PLW1509  see there
    except OSError as error:
        raise ToolError(f"QEMU cannot be started: {error.strerror}", where=command[0], hint=MENDS) from error
    try:
        return machine.wait()
    finally:
        machine.terminate()
        try:
            machine.wait(END)
        except subprocess.TimeoutExpired:
            machine.kill()
            machine.wait()
