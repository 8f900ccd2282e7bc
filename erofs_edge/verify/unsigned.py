# SPDX-License-Identifier: Apache-2.0
"""Check a disk image for which no key is known: each FIT in it must at least have a signature."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.disk import gpt
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.positions import pread

FDT_MAGIC = b"\xd0\x0d\xfe\xed"
FIT_MAX = 1 << 30
HINT = "on a board whose sign.key is a development key, --allow-unsigned writes it anyway"


def check_alone(fd: int, table: gpt.Table, image: Path) -> None:
    """Raises VerificationError if a FIT is not signed."""
    for part in table.partitions:
        start = part.first_lba * table.sector_size
        if pread(fd, len(FDT_MAGIC), start) == FDT_MAGIC and not _is_signed(
            fd, start, (part.last_lba + 1) * table.sector_size - start
        ):
            raise VerificationError(f"partition {part.name} is not signed", where=str(image), hint=HINT)


def _is_signed(fd: int, start: int, room: int) -> bool:
    """Whether a FIT at `start`, with `room` bytes, has a signature; True for anything that is not a FIT."""
    from erofs_edge.boot.fdt import HEADER, parse
    from erofs_edge.boot.fit_paths import SIGNATURE_PATH

    size = int.from_bytes(pread(fd, 4, start + 4), "big")
    if not HEADER.size <= size <= min(room, FIT_MAX):
        return True
    try:
        signature = parse(pread(fd, size, start)).root.at(SIGNATURE_PATH)
    except ErofsEdgeError:
        return True
    return signature is not None and bool(signature.props.get("value"))
