# SPDX-License-Identifier: Apache-2.0
"""What a board would start from a disk: the boot script's decisions, then everything that the boot chain verifies.

The boot script (boot/script.py) takes the first slot in the order with an attempt left, counts the attempt, and goes on
to the next if the boot image is refused. The initramfs restarts the board if the system is not the one that the boot
image names, which uses up an attempt as well. When no slot has attempts left, all get theirs back. A board that has
found nothing after all these starts does not boot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from erofs_edge.disk import gpt, slots
from erofs_edge.errors import FormatError
from erofs_edge.verity import superblock
from erofs_edge.verity.blocks import hash_blocks
from erofs_edge.verity.superblock import Superblock

Read = Callable[[int, int], bytes]
"""read(offset, length) of a disk or partition, in bytes"""


@dataclass(frozen=True, slots=True)
class System:
    """What a boot image names: the root hash, and the byte offset of the hash tree's superblock in the system
    partition."""

    root_hash: bytes
    hash_offset: int


Open = Callable[[Read, int], System | None]
"""open(read, size of the partition): the system that a boot image names, if its signature (or a test's replacement)
is valid
"""


@dataclass(frozen=True, slots=True)
class Started:
    """A running system. `attempts`: starts until it ran. `state`: the slot state as left by the board."""

    slot: str
    root_hash: bytes
    attempts: int
    state: slots.SlotState


def start(read: Read, size: int, opened: Open, *, boot: str = "boot", system: str = "system") -> Started | None:
    """Start a disk of `size` bytes; None if it does not boot. Nothing is written."""
    try:
        table = gpt.decode(read, size, 512)
    except FormatError:
        return None
    places = {p.name: (p.first_lba * 512, (p.last_lba - p.first_lba + 1) * 512) for p in table.partitions}
    names = [name.removeprefix(f"{boot}_").upper() for name in places if name.startswith(f"{boot}_")]
    misc = places.get("misc")
    if misc is None or not names:
        return None
    state = slots.decode_state_or(read(misc[0], slots.STATE_SIZE), slots.initial(names))
    verdicts: dict[str, bytes | None] = {}
    for attempt in range(1, 2 * slots.LEFT_MAX * len(names) + 1):
        slot, state = slots.choose(state or slots.initial(names))
        if slot not in verdicts:
            verdicts[slot] = _verify(read, places, f"{boot}_{slot.lower()}", f"{system}_{slot.lower()}", opened)
        root = verdicts[slot]
        if root is not None:
            return Started(slot, root, attempt, state)
    return None


def _verify(read: Read, places: dict[str, tuple[int, int]], boot: str, system: str, opened: Open) -> bytes | None:
    """The root hash of a slot that boots and is intact."""
    if boot not in places or system not in places:
        return None
    base, size = places[boot]
    found = opened(lambda offset, length: read(base + offset, length), size)
    if found is None:
        return None
    start, room = places[system]
    return found.root_hash if whole(lambda offset, length: read(start + offset, length), room, found) else None


def whole(read: Read, size: int, system: System) -> bool:
    """Whether every block of a system partition, data and tree, matches the root hash."""
    try:
        sb = superblock.parse(read(system.hash_offset, superblock.SIZE), system.hash_offset)
    except FormatError:
        return False
    if sb.end(system.hash_offset) > size or sb.data_size > system.hash_offset:
        return False
    return _root(read, sb, system.hash_offset) == system.root_hash


def _root(read: Read, sb: Superblock, at: int) -> bytes | None:
    """The root hash computed from the data; None if a level of the tree on the disk differs from it."""
    digests = hash_blocks(read(0, sb.data_size), sb.data_block_size, sb)
    for level in sb.levels(at):
        size = level.count * sb.hash_block_size
        stored = read(level.start * sb.hash_block_size, size)
        if stored != digests.ljust(size, b"\0"):
            return None
        digests = hash_blocks(stored, sb.hash_block_size, sb)
    return digests[: sb.digest_size]
