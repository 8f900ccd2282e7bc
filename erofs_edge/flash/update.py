# SPDX-License-Identifier: Apache-2.0
"""Update one slot of a disk that already has the image's layout: which slot, and which regions of the image go where.

The running system, the other slots, the data partition and the partition table are left alone. Whether a disk has the
layout is read from its own table: every partition with slots, and the one with the slot state, must have the same name
and place as in the image. GUIDs may differ (they derive from the build), and so may the end of the data partition (a
device enlarges it at its first start).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.disk import gpt, slots
from erofs_edge.disk.slots import SlotState
from erofs_edge.errors import DeviceRefusedError, FormatError
from erofs_edge.flash import slot_state
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Plan, Region
from erofs_edge.flash.slot_state import Record, SlotUpdate
from erofs_edge.flash.target import Ability, Target

IMAGE_HASHED = 64 << 20  # bytes of the first partition that identify an image in the journal
WHOLE_HINT = "--whole writes everything anew, and empties the data partition"
Place = tuple[int, int]
"""(start, end) in bytes"""


class Layout(NamedTuple):
    """An image with slots. `slots`: lower case, in the order of its slot state; `source`: the slot whose content is
    used; `bases`: names without the slot ('boot', 'system'); `places`: partition → where it is."""

    slots: tuple[str, ...]
    source: str
    bases: tuple[str, ...]
    misc: str
    places: dict[str, Place]
    size: int


def read_layout(image: Image) -> Layout | None:
    """The slots of an image. None if it has no partitions with slots or no slot state, or if one EFI system partition
    holds the boot files of all slots, so that no slot can be written alone."""
    table = image.table()
    if table is None or any(_starts_slots(partition, table, image) for partition in table.partitions):
        return None
    places = table.places()
    found = find_state(table, image.read)
    if found is None:
        return None
    misc, state = found
    names = tuple(name.lower() for name in state.left)
    bases = tuple(
        partition.name.removesuffix(f"_{names[0]}")
        for partition in table.partitions
        if partition.name.endswith(f"_{names[0]}")
        and all(f"{partition.name.removesuffix(f'_{names[0]}')}_{slot}" in places for slot in names)
    )
    return Layout(names, slots.active(state).lower(), bases, misc, places, image.size) if bases else None


def _starts_slots(partition: gpt.Partition, table: gpt.Table, image: Image) -> bool:
    """Whether a partition is an EFI system partition with kernel images for systemd-boot to choose from."""
    if partition.type_guid != gpt.TYPE_ESP:
        return False
    from erofs_edge.disk.fat_read import Volume

    start, size = partition.first_lba * table.sector_size, partition.last_lba - partition.first_lba + 1
    try:
        volume = Volume(lambda at, length: image.read(start + at, length), size * table.sector_size)
        return any(entry.path.upper().startswith("EFI/LINUX/") for entry in volume.files())
    except FormatError:
        return False


def find_state(table: gpt.Table, read: gpt.Read) -> tuple[str, SlotState] | None:
    """The name of the partition that holds a slot state, and the state: 'misc' is tried first, then the others."""
    for partition in sorted(table.partitions, key=lambda p: p.name != slot_state.MISC):
        start = partition.first_lba * table.sector_size
        end = (partition.last_lba + 1) * table.sector_size
        if end - start >= slots.STATE_SIZE and (
            state := slots.decode_state_or(read(start, slots.STATE_SIZE))
        ):  # fmt: skip
            return partition.name, state
    return None


def read_record(layout: Layout, target: Target) -> Record | None:
    """The slot state of a target with this layout; None for any other target, and for one that was being written as a
    whole when that was interrupted.

    If the target cannot be read, the state is unknown and counts as damaged.
    """
    there = target.partitions(layout.size)
    needed = _needed(layout)
    if any(there.get(name) != layout.places[name] for name in needed):
        return None
    start, end = layout.places[layout.misc]
    if Ability.READ not in target.abilities:
        return Record(start, end - start, slots.initial(layout.slots), damaged=True)
    record = slot_state.read(target, start, end - start, layout.slots)
    if record.under_way is not None and record.under_way.slot == slot_state.WHOLE:
        return None
    return record if {name.lower() for name in record.state.left} == set(layout.slots) else None


def refuse_misfit(layout: Layout, target: Target) -> None:
    """Raises DeviceRefusedError if a target has all of the image's slots but too small or in other places: treating it
    as blank would destroy its system and data."""
    there = target.partitions(layout.size)
    needed = _needed(layout)
    if any(name not in there for name in needed):
        return
    start, end = there[layout.misc]
    if end - start < slots.STATE_SIZE:
        return
    if Ability.READ in target.abilities and slots.decode_state_or(slot_state.copies(target, start)) is None:
        return
    places = {name: (there[name], layout.places[name]) for name in needed if there[name] != layout.places[name]}
    for name, ((start, end), (first, last)) in places.items():
        if end - start < last - first:
            raise DeviceRefusedError(
                f"the image is larger than the slot: '{name}' has {end - start} bytes, {last - first} are needed",
                where=target.identity.path,
                hint=WHOLE_HINT,
            )
    if places:
        raise DeviceRefusedError(
            f"the slots are not at the same place as in the image: '{next(iter(places))}'",
            where=target.identity.path,
            hint=WHOLE_HINT,
        )


def _needed(layout: Layout) -> list[str]:
    """The partitions that a target must have in the same place as the image."""
    return [layout.misc, *(f"{base}_{slot}" for base in layout.bases for slot in layout.slots)]


def plan_slot(image: Image, layout: Layout, slot: str) -> Plan:
    """The regions of one slot, without any change to the slot state."""
    return Plan(image.path, image.size, tuple(_regions(image, layout, slot)), ())


def plan_update(
    image: Image, layout: Layout, record: Record, slot: str | None = None, abilities: Ability = Ability.READ
) -> Plan:
    """Plan to make a slot hold the image and start next; without `slot`, the most dispensable one is chosen.

    Raises DeviceRefusedError if the slot does not exist, if the device depends on it while there is another, and if the
    choice has to be made by the user.
    """
    state = record.state
    if slot is None and Ability.READ not in abilities:
        raise DeviceRefusedError(
            "the device cannot say which of its slots is running",
            where=layout.misc,
            hint="name the slot to write with --slot SLOT, or write everything with --whole",
        )
    name = (slot or slots.spare(state)).upper()
    if name not in state.left:
        known = ", ".join(layout.slots)
        raise DeviceRefusedError(f"the device has no slot {slot!r}", where=layout.misc, hint=f"slots: {known}")
    if len(state.left) > 1 and name == slots.mainstay(state) and Ability.READ in abilities:
        raise DeviceRefusedError(
            f"the device relies on slot {name.lower()}: if the write were interrupted, nothing could start",
            where=layout.misc,
            hint=f"without --slot, slot {slots.spare(state).lower()} is written; --repair mends this one in place",
        )
    before = slots.retire(state, name)
    update = SlotUpdate(record, name, before, slots.activate(before, name), _identity(image, layout))
    plan = plan_slot(image, layout, name.lower())
    return Plan(plan.image, plan.size, plan.contents, (), update)


def _regions(image: Image, layout: Layout, slot: str) -> Iterator[Region]:
    for base in layout.bases:
        source, target = layout.places[f"{base}_{layout.source}"], layout.places[f"{base}_{slot}"]
        if source[1] - source[0] != target[1] - target[0]:
            raise FormatError(f"the slots of '{base}' have different sizes", where=str(image.path))
        shift = target[0] - source[0]
        data = tuple((start + shift, end + shift) for start, end in image.extents(*source))
        yield Region(f"{base}_{slot}", *target, data, shift=shift)


def _identity(image: Image, layout: Layout) -> str:
    """sha256 of the first partition's data: the boot image, which identifies the system by its root hash."""
    import hashlib

    start, end = layout.places[f"{layout.bases[0]}_{layout.source}"]
    state = hashlib.sha256()
    for first, last in image.extents(start, min(end, start + IMAGE_HASHED)):
        state.update(image.read(first, last - first))
    return state.hexdigest()
