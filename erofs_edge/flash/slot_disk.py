# SPDX-License-Identifier: Apache-2.0
"""Read the slots of a disk, image or device, and change which one starts next."""

from __future__ import annotations

from dataclasses import dataclass

from erofs_edge.disk import journal, slots
from erofs_edge.disk.slots import SlotState, Standing
from erofs_edge.errors import DeviceRefusedError, UsageError, VerificationError
from erofs_edge.flash import slot_state
from erofs_edge.flash.guarded import Guarded
from erofs_edge.flash.slot_state import Record
from erofs_edge.flash.target import Target


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot. `left`: start attempts left until it must have proved that it works; `next`: it starts next;
    `incomplete`: writing into it was interrupted."""

    name: str
    standing: Standing
    left: int
    next: bool
    incomplete: bool


def read_slots(target: Target) -> Record:
    """The slot state of a target with a partition table.

    Raises UsageError if there is none with slots, VerificationError if both copies of the state are damaged and the
    partition names do not reveal the slots, PartialWriteError if the target cannot be read.
    """
    with Guarded(target, "slot state", "reading"):
        places = target.partitions()
        for name in sorted(places, key=lambda name: name != slot_state.MISC):
            start, end = places[name]
            if end - start < slots.STATE_SIZE:
                continue
            if name == slot_state.MISC or slots.decode_state_or(slot_state.copies(target, start)):
                record = slot_state.read(target, start, end - start, _suffixes(list(places)))
                if record.damaged and not _suffixes(list(places)):
                    raise VerificationError("both copies of the slot state are damaged", where=target.identity.path)
                return record
    raise UsageError("no slot state here: not a disk with slots", where=target.identity.path)


def listed(record: Record) -> list[Slot]:
    """The slots in the order in which they are tried, followed by those outside that order."""
    state = record.state
    names = [*state.order, *(name for name in state.left if name not in state.order)]
    chosen = slots.active(state)
    unfinished = record.under_way.slot if record.under_way is not None else None
    return [
        Slot(
            name.lower(),
            slots.standing(state, name),
            state.left[name],
            name == chosen,
            unfinished in (name, slot_state.WHOLE),
        )
        for name in names
    ]


def activate(target: Target, record: Record, slot: str, *, force: bool = False) -> SlotState:
    """Make a slot start next, with all attempts of a trial if it has not yet proved that it works.

    Raises DeviceRefusedError, unless forced, if the slot, or the whole disk, was left half written.
    """
    name = _known(record, slot, target)
    if record.under_way is not None and record.under_way.slot in (name, slot_state.WHOLE) and not force:
        raise DeviceRefusedError(
            f"slot {slot.lower()} was left half written",
            where=target.identity.path,
            hint="flash it again, or use --force to start it anyway: if it does not verify, the board falls back",
        )
    state = slots.activate(record.state, name)
    if slots.standing(record.state, name) == "good":
        state = slots.mark(state, name, "good")
    return _write(target, record, state)


def mark(target: Target, record: Record, slot: str, standing: Standing) -> SlotState:
    """Mark a slot as good, bad, or on trial again."""
    return _write(target, record, slots.mark(record.state, _known(record, slot, target), standing))


def _write(target: Target, record: Record, state: SlotState) -> SlotState:
    with Guarded(target, "slot state", resumes=False):
        slot_state.write(target, record, state)
        if record.under_way is not None and record.size >= journal.END and slots.active(state) == record.under_way.slot:
            slot_state.forget(target, record)
        target.finish()
    return state


def _known(record: Record, slot: str, target: Target) -> str:
    if slot.upper() not in record.state.left:
        known = ", ".join(name.lower() for name in record.state.left)
        raise UsageError(f"no slot {slot!r}", where=target.identity.path, hint=f"slots: {known}")
    return slot.upper()


def _suffixes(names: list[str]) -> list[str]:
    """Slots by partition names: 'a' and 'b' for boot_a, boot_b, system_a, system_b."""
    bases: dict[str, list[str]] = {}
    for name in names:
        base, found, suffix = name.rpartition("_")
        if found and base and suffix:
            bases.setdefault(base, []).append(suffix)
    return max(bases.values(), key=len, default=[])
