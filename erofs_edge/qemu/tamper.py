# SPDX-License-Identifier: Apache-2.0
"""Damage that a system must not survive: one byte of a disk image's copy, chosen so that the boot must read it.

Every slot is damaged alike, so that starting another slot cannot hide that the damage was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from erofs_edge.boot.fdt import HEADER, PROP, PROP_HEAD_SIZE, tags
from erofs_edge.boot.fit import SIGNATURE_PATH
from erofs_edge.errors import FormatError
from erofs_edge.manifest.model import CONTENT_WORDS, Board
from erofs_edge.qemu.verdict import Stop

Read = Callable[[int, int], bytes]
"""read(offset, length) in bytes of a partition"""

MASK = 0x20
"""the bit that is flipped"""


@dataclass(frozen=True, slots=True)
class Tamper:
    """A scenario.

    content  which partitions: 'fit', or 'system' for those that hold a manifest's tree
    place    the byte of the partition to damage
    stop     where that must stop the boot
    """

    title: str
    content: str
    place: Callable[[Read], int]
    stop: Stop


def _system_byte(read: Read) -> int:
    """Byte 0. The superblock at 1024 is in the same verity block, so every boot reads it; EROFS itself neither uses
    nor checks the first 1024 bytes (kernel fs/erofs/super.c), so that only dm-verity can object."""
    del read
    return 0


def _kernel_byte(read: Read) -> int:
    start, length = _property(read, "/images/kernel", "data")
    return start + length // 2


def _signature_byte(read: Read) -> int:
    start, length = _property(read, SIGNATURE_PATH, "value")
    return start + length // 2


def _property(read: Read, path: str, name: str) -> tuple[int, int]:
    """Offset and length in bytes of a property's value in a FIT. Raises FormatError where it is not there."""
    fit = read(0, HEADER.unpack(read(0, HEADER.size))[1])
    for tag in tags(fit):
        if tag.kind == PROP and tag.path == path and tag.name == name:
            return tag.start + PROP_HEAD_SIZE, len(tag.value)
    raise FormatError(f"the FIT has no {path}/{name}")


TAMPERS = {
    "system": Tamper("a flipped bit in the system image", "system", _system_byte, Stop("verity", "corrupt")),
    "fit": Tamper("a flipped bit in the kernel", "fit", _kernel_byte, Stop("fit", "fit-refused")),
    "signature": Tamper("a flipped bit in the FIT's signature", "fit", _signature_byte, Stop("fit", "fit-refused")),
}


def partitions(tamper: Tamper, board: Board) -> list[str]:
    """Names of the partitions that a scenario damages: every slot ('system_a', 'system_b')."""
    names = []
    for name, partition in board.disk.partitions.items():
        word = partition.content if partition.content in CONTENT_WORDS else "system" if partition.content else None
        if word == tamper.content:
            names += [f"{name}_{slot}" for slot in partition.slots] or [name]
    return names
