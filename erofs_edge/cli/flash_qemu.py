# SPDX-License-Identifier: Apache-2.0
"""`flash --to qemu:TRANSPORT`: a board in QEMU is started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.cli.output import note
from erofs_edge.errors import UsageError

SCHEME = "qemu:"


@contextmanager
def reached(to: str, what: Path | None, out: Path | None, disk: Path | None) -> Iterator[str]:
    """The address that `to` means: `to` itself, or that of the emulated board while the block lasts.

    Raises UsageError where an emulated board lacks its board file or its disk.
    """
    if not to.startswith(SCHEME):
        if disk is not None:
            raise UsageError("--disk is the disk of an emulated board", hint="--to qemu:nbd, or --to FILE")
        yield to
        return
    if what is None or what.suffix not in {".yaml", ".yml"} or disk is None:
        raise UsageError(f"{to} needs a BOARD and --disk FILE", hint=f"erofs-edge flash BOARD --to {to} --disk FILE")
    from erofs_edge.manifest.load import load_board
    from erofs_edge.qemu.attach import attached

    board = load_board(what)
    with attached(board, out or Path("out") / board.value.board, to.removeprefix(SCHEME), disk, note) as address:
        yield address
