# SPDX-License-Identifier: Apache-2.0
"""What is being written into which slot: two records in the slot-state partition, behind those of the minimum version.

Each is a U-Boot environment block (see slots.py) with UPDATE_SLOT and UPDATE_IMAGE. They are written before the first
byte of a slot changes and emptied when all of it was proved, the second copy first, each flushed. Nothing is believed
because of them: what a slot holds is always proved anew. They are for people and for `slots activate`, which would
otherwise take a slot that was left half written. Where neither copy is whole, nothing is known to be under way; the
boot loader reads neither, so that no damage to them keeps a board from starting.
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
"""bytes that a partition must have to hold them"""


class Journal(NamedTuple):
    """slot   the slot that is being written, 'B'
    image  sha256 of the boot image that goes there, hexadecimal"""

    slot: str
    image: str


def encode(journal: Journal | None) -> bytes:
    """One record; None says that nothing is under way."""
    return slots.encode({} if journal is None else {"UPDATE_SLOT": journal.slot, "UPDATE_IMAGE": journal.image}, SIZE)


def writes(journal: Journal | None) -> list[tuple[int, bytes]]:
    """(byte offset, record), to be flushed one by one."""
    return [(offset, encode(journal)) for offset in reversed(OFFSETS)]


def decode(read: Callable[[int, int], bytes]) -> Journal | None:
    """What a partition says is under way, by `read(offset, length)`; None for nothing, and where no record is whole."""
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
