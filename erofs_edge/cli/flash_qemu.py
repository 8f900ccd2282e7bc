# SPDX-License-Identifier: Apache-2.0
"""`flash --to qemu:TRANSPORT`: a board in QEMU is started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.cli.output import note
from erofs_edge.errors import UsageError

SCHEME = "qemu:"


def check(to: str, what: Path | None, disk: Path | None) -> None:
    """Raises UsageError where an emulated board lacks its board file or its disk, or there is none that is reached so.
    It is known before anything is read."""
    if not to.startswith(SCHEME):
        if disk is not None:
            raise UsageError("--disk is the disk of an emulated board", hint="--to qemu:nbd, or --to FILE")
        return
    from erofs_edge.qemu.attach import TRANSPORTS

    if to.removeprefix(SCHEME) not in TRANSPORTS:
        raise UsageError(f"no transport '{to}'", hint=f"known: {', '.join(SCHEME + name for name in TRANSPORTS)}")
    if what is None or what.suffix not in {".yaml", ".yml"} or disk is None:
        raise UsageError(f"{to} needs a BOARD and --disk FILE", hint=f"erofs-edge flash BOARD --to {to} --disk FILE")


@contextmanager
def reached(to: str, what: Path | None, out: Path | None, disk: Path | None) -> Iterator[str]:
    """The address that `to` means: `to` itself, or that of the emulated board while the block lasts. `check` has looked
    at the arguments."""
    if what is None or disk is None or not to.startswith(SCHEME):
        yield to
        return
    from erofs_edge.cli.built import built
    from erofs_edge.flash.local import refuse_used
    from erofs_edge.qemu.attach import attached

    refuse_used(disk)
    board, folder = built(what, out)
    with attached(board, folder, to.removeprefix(SCHEME), disk, note) as address:
        yield address
