# SPDX-License-Identifier: Apache-2.0
"""The system of a build as a discoverable disk image, for systemd-dissect, systemd-nspawn and portable services.

The parts are those of the build, byte for byte: file system, hash tree with its superblock, the signed root hash.
"""

from __future__ import annotations

import os
from pathlib import Path

from erofs_edge.build.record import read_release
from erofs_edge.build.signing import VERITY_SIGNATURE
from erofs_edge.disk.ddi import write_ddi
from erofs_edge.errors import ErofsEdgeError, SourceError
from erofs_edge.verity.check import read_superblock
from erofs_edge.writing import folder_beside

SYSTEM = "system.img"


def write_discoverable(out: Path, target: Path) -> bytes:
    """Write the image of the system built in the folder `out`; return its root hash.

    Raises ErofsEdgeError if there is no build or its record is damaged, SourceError if a file cannot be read.
    """
    record = read_release(out)
    try:
        system, arch = record["system"], str(record["arch"])
        name, root_hash = str(system["name"]), bytes.fromhex(system["root_hash"])
        at = int(system["hash_offset"])
    except (TypeError, ValueError) as error:
        raise ErofsEdgeError(f"the release record is damaged: {error}", where=str(out), hint="build again") from None
    image = out / SYSTEM
    sb = read_superblock(image, at)
    with folder_beside(target) as folder:
        data, tree = folder / "data", folder / "tree"
        _piece(image, data, 0, sb.data_size)
        _piece(image, tree, at, sb.end(at))
        write_ddi(
            target, name=name, arch=arch, data=data, tree=tree, root_hash=root_hash,
            signature=(out / VERITY_SIGNATURE).read_bytes(),
        )  # fmt: skip
    return root_hash


def _piece(source: Path, target: Path, start: int, end: int) -> None:
    """Bytes [start, end) of a file, as a file of their own."""
    try:
        with source.open("rb") as old, target.open("wb") as new:
            os.ftruncate(new.fileno(), end - start)
            old.seek(start)
            while start < end and (data := old.read(min(4 << 20, end - start))):
                new.write(data)
                start += len(data)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(source)) from error
    if start < end:
        raise SourceError("the image is shorter than its record says", where=str(source))
