# SPDX-License-Identifier: Apache-2.0
"""The contents of a slot: each partition with slots, and the file of the build that it contains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from erofs_edge.build.record import read_release
from erofs_edge.errors import ErofsEdgeError, UsageError, VerificationError
from erofs_edge.flash.image import Image
from erofs_edge.flash.update import read_layout

DISK = "disk.img"
_HEAD = 4096  # bytes by which a file is recognized
_COPY = 4 << 20


def slot_files(out: Path) -> dict[str, Path]:
    """Name of a partition without its slot ('boot', 'system') → its file in the build in `out`.

    Raises UsageError for a board whose slots cannot be written separately, ErofsEdgeError if the folder contains no
    build or the disk has something other than its files.
    """
    record = read_release(out)
    with Image(out / DISK) as disk:
        layout = read_layout(disk)
        if layout is None:
            raise no_slots(str(out))
        places = {base: layout.places[f"{base}_{layout.source}"] for base in layout.bases}
        return {base: _held(out, record, disk, *place) for base, place in places.items()}


def no_slots(where: str) -> UsageError:
    """The error for a board that can only be written as a whole."""
    return UsageError(
        "this board has no slots that can be updated one at a time",
        where=where,
        hint="it has one slot, or all kernel images are in one EFI system partition: flash the whole disk",
    )


def default_version(record: dict[str, Any]) -> str:
    """A version of a build for updaters: the rollback index, and the date of the newest lock. Raises VerificationError
    if the date in the record is out of range."""
    import time

    try:
        moment = time.strftime("%Y%m%d%H%M%S", time.gmtime(record["epoch"]))
    except (OverflowError, OSError, ValueError) as error:
        what = "release.json is damaged: its 'epoch' is no time"
        raise VerificationError(f"{what}: {error}", hint="build again") from error
    return f"{record['sign']['rollback_index']}.{moment}"


def _held(out: Path, record: dict[str, Any], disk: Image, start: int, end: int) -> Path:
    head = disk.read(start, min(_HEAD, end - start))
    for name, entry in record["files"].items():
        if name == DISK or not _HEAD <= entry["size"] <= end - start or not (out / name).is_file():
            continue
        with (out / name).open("rb") as handle:
            if handle.read(len(head)) == head and _rest_is_same(handle.fileno(), disk, start, entry["size"]):
                return out / str(name)
    raise ErofsEdgeError("a partition holds none of the build's files", where=f"{out / DISK}: offset {start:#x}")


def _rest_is_same(fd: int, disk: Image, start: int, size: int) -> bool:
    for at in range(0, size, _COPY):
        length = min(_COPY, size - at)
        if os.pread(fd, length, at) != disk.read(start + at, length):
            return False
    return True
