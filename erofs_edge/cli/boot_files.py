# SPDX-License-Identifier: Apache-2.0
"""The disk and the log of ``erofs-edge boot``: what must not be used as one is refused before a machine starts."""

from __future__ import annotations

import os
from pathlib import Path

from erofs_edge.errors import DeviceRefusedError, ErofsEdgeError, UsageError

OWN = "disk.img"
"""the disk image in a build's folder"""


def check_disk(disk: Path, out: Path, *, kept: bool) -> None:
    """Check a disk that the user named. `kept`: what the machine writes to it is kept; otherwise it is only read.

    Raises ErofsEdgeError if it is missing, UsageError for what is no disk and for the build's own image, which must
    stay as it was built, DeviceRefusedError if another program uses it or it must not be written.
    """
    if disk.is_fifo():
        raise UsageError("a pipe, not a disk", where=str(disk), hint="save its output to a file first")
    if disk.is_dir():
        raise UsageError("a folder, not a disk", where=str(disk))
    if not disk.exists():
        raise ErofsEdgeError(
            "there is no such disk image", where=str(disk), hint="erofs-edge flash BOARD --to FILE makes one"
        )
    if kept:
        _check_kept(disk, out)
    else:
        from erofs_edge.transport.claim import refuse_written

        refuse_written(disk)


def _check_kept(disk: Path, out: Path) -> None:
    from erofs_edge.flash.local import refuse_used

    if _same(disk, out / OWN):
        raise UsageError(
            "this is the build's own image, which must stay as it was built",
            where=str(disk),
            hint="use a copy, as erofs-edge flash BOARD --to FILE makes one",
        )
    if not disk.is_file():
        raise DeviceRefusedError(
            "only a file can keep what the machine writes",
            where=str(disk),
            hint="--smoke without --keep reads a device and writes nothing to it",
        )
    if not os.access(disk, os.W_OK):
        raise DeviceRefusedError(
            "the disk image cannot be written: no permission, or a read-only file system",
            where=str(disk),
            hint="use a copy; --smoke without --keep writes nothing to it",
        )
    refuse_used(disk)


def check_log(log: Path | None, out: Path, *others: Path | None) -> None:
    """Raises UsageError if the log would overwrite the build's own disk image or one of the others: files that the same
    boot uses."""
    if log is None:
        return
    for other in (out / OWN, *others):
        if other is not None and (other == log or _same(log, other)):
            raise UsageError(
                "--log would overwrite a file that this boot uses", where=str(log), hint="name another file"
            )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
