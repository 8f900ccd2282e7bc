# SPDX-License-Identifier: Apache-2.0
"""Record what is being written into which slot: two records in the slot-state partition, after those of the minimum
version.

Each is a U-Boot environment block (see slots.py) with UPDATE_SLOT and UPDATE_IMAGE. They are written before the first
byte of a slot changes and emptied once everything is proved, the second copy first, each followed by a flush. They are
never taken as proof: what a slot holds is always proved anew. They inform people, and `slots activate`, which would
otherwise accept a slot that was left half written. If neither copy is intact, nothing is known to be in progress. The
boot loader reads neither, so damage to them never keeps a board from starting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from erofs_edge.disk import slots
from erofs_edge.errors import FormatError

OFFSETS = (256 << 10, 320 << 10)
"""bytes, of the two records in the partition"""
SIZE = 4 << 10
END = OFFSETS[-1] + SIZE
"""bytes that a partition needs to hold them"""


class Journal(NamedTuple):
    """An update in progress.

    slot   the slot that is being written, 'B'
    image  sha256 of the boot image being written, hexadecimal"""

    slot: str
    image: str


def encode(journal: Journal | None) -> bytes:
    """One record; None says that nothing is in progress."""
    return slots.encode({} if journal is None else {"UPDATE_SLOT": journal.slot, "UPDATE_IMAGE": journal.image}, SIZE)


def writes(journal: Journal | None) -> list[tuple[int, bytes]]:
    """(byte offset, record), to be flushed one by one."""
    return [(offset, encode(journal)) for offset in reversed(OFFSETS)]


def decode(read: Callable[[int, int], bytes]) -> Journal | None:
    """The update in progress according to a partition, read by `read(offset, length)`; None for nothing, and if no
    record is intact.
    """
    for offset in OFFSETS:
        try:
            found = slots.decode(read(offset, SIZE), offset)
        except FormatError:
            continue
        slot, image = found.get("UPDATE_SLOT", ""), found.get("UPDATE_IMAGE", "")
        if re.fullmatch(r"[A-Z0-9]+", slot) and re.fullmatch(r"[0-9a-f]{64}", image):
            return Journal(slot, image)
        return None
    return None
