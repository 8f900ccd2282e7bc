# SPDX-License-Identifier: Apache-2.0
"""`flash --to qemu:TRANSPORT`: start a board in QEMU and flash it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.cli.output import note
from erofs_edge.errors import DeviceRefusedError, ErofsEdgeError, ToolError, UsageError

SCHEME = "qemu:"


def check(to: str, what: Path | None, disk: Path | None) -> None:
    """Raises UsageError if an emulated board lacks its board file or its disk, or does not support the transport. Needs
    only the arguments, so it is called before anything is read."""
    if not to.startswith(SCHEME):
        if disk is not None:
            raise UsageError(
                "--disk is for a board in QEMU", hint="add --to qemu:nbd; or use --to FILE instead of --disk"
            )
        return
    from erofs_edge.qemu.attach import TRANSPORTS

    if to.removeprefix(SCHEME) not in TRANSPORTS:
        raise UsageError(f"unknown address '{to}'", hint=f"known: {', '.join(SCHEME + name for name in TRANSPORTS)}")
    if what is None or what.suffix not in {".yaml", ".yml"} or disk is None:
        raise UsageError(f"{to} needs a BOARD and --disk FILE", hint=f"erofs-edge flash BOARD --to {to} --disk FILE")
    if disk.exists() and not disk.is_file():
        raise UsageError(
            "the disk of an emulated board is a file, and this is none", where=str(disk), hint="a device: --to /dev/sdX"
        )


@contextmanager
def reached(
    to: str, what: Path | None, out: Path | None, disk: Path | None, image: Path, *, looking: bool
) -> Iterator[str]:
    """Yield the address that `to` means: `to` itself, or that of an emulated board, which runs until the block ends.
    `check` must have accepted the arguments. If `looking`, nothing will be written, and a missing disk is not created.

    Raises UsageError if the disk is the image, DeviceRefusedError if another program uses it or it cannot be written.
    Errors of the board name the disk, as its address means nothing to the user.
    """
    if what is None or disk is None or not to.startswith(SCHEME):
        yield to
        return
    if looking and not disk.exists():
        yield str(disk.absolute())
        return
    from erofs_edge.cli.built import built
    from erofs_edge.flash.local import refuse_used
    from erofs_edge.qemu.attach import attached

    _refuse_unusable(disk, image)
    board, folder = built(what, out)
    address = ""
    try:
        with attached(board, folder, to.removeprefix(SCHEME), disk, note) as address:
            yield address
    except ToolError:
        refuse_used(disk)  # another run, started at the same time, may have been faster
        raise
    except ErofsEdgeError as error:
        place = address.partition("://")[2].partition("?")[0]
        if place and error.where is not None and place in error.where:
            error.where = f"{disk}{error.where.partition(place)[2]}"
        raise


def _refuse_unusable(disk: Path, image: Path) -> None:
    """Refuse an unusable disk before a machine is started."""
    from erofs_edge.flash.local import refuse_used

    if not disk.exists():
        return
    if disk.samefile(image):
        raise UsageError("the target is the image itself", where=str(disk))
    if not os.access(disk, os.W_OK):
        raise DeviceRefusedError(
            "the emulated board's disk cannot be written: no permission, or a read-only file system",
            where=str(disk),
            hint="use a copy; --to FILE with --plan or --verify-only reads it where it is",
        )
    refuse_used(disk)
