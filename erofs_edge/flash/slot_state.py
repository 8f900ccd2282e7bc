# SPDX-License-Identifier: Apache-2.0
"""Read the slot state of a target, and change it so that a power cut at any moment leaves either the old or the new
one.

The two copies (disk/slots.py) are written one after the other, each followed by a flush, the invalid or older one
first. The journal (disk/journal.py) is written in between: after a slot is closed, before it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from erofs_edge.disk import journal, slots
from erofs_edge.disk.journal import Journal
from erofs_edge.disk.slots import SlotState
from erofs_edge.flash.target import Ability, Target

MISC = "misc"
"""the partition's name on the stock boards and in fw_env.config"""

WHOLE = "WHOLE"
"""in the place of a slot in the journal: the whole disk is being written"""


class Record(NamedTuple):
    """The slot-state partition of a target, as read; `start` and `size` in bytes. `damaged`: neither copy is intact, so
    the boot loader uses its defaults, which `state` holds then. `under_way`: what was being written when it was
    interrupted."""

    start: int
    size: int
    state: SlotState
    damaged: bool = False
    under_way: Journal | None = None


class SlotUpdate(NamedTuple):
    """An update of one slot while another one stays as it is.

    before   the state while the slot is half written
    after    the state once it is proved
    image    sha256 of the boot image, hexadecimal
    """

    record: Record
    slot: str
    before: SlotState
    after: SlotState
    image: str


def read(target: Target, start: int, size: int, names: Iterable[str]) -> Record:
    """The record in bytes [start, start + size) of a target. `names`: the slots that a damaged record falls back to."""
    found = slots.decode_state_or(copies(target, start))
    entry = _journal(target, start, size)
    state = found or slots.initial([name.lower() for name in names])
    return Record(start, size, state, damaged=found is None, under_way=entry)


def copies(target: Target, start: int) -> bytes:
    """Both copies of the state at their offsets, STATE_SIZE bytes in all; what lies between is not read."""
    raw = bytearray(slots.STATE_SIZE)
    for offset in slots.ENV_OFFSETS:
        piece = target.read(start + offset, slots.ENV_SIZE)
        raw[offset : offset + len(piece)] = piece
    return bytes(raw)


def write(target: Target, record: Record, state: SlotState) -> None:
    """Change the state. If it raises OSError, the old or the new state is in effect."""
    raw = copies(target, record.start) if Ability.READ in target.abilities else b""
    _write(target, record.start, slots.writes(raw, state))


def begin(target: Target, update: SlotUpdate) -> None:
    """Take away the slot's start attempts and note in the journal what will be written there."""
    if _state(target, update) != update.before:
        write(target, update.record, update.before)
    _note(target, update, Journal(update.slot, update.image))


def begin_whole(target: Target, start: int, size: int) -> None:
    """Note in the journal, in bytes [start, start + size), that a disk that has its table already is being written as a
    whole. What the image has there, nothing, is written last."""
    if size >= journal.END:
        _write(target, start, journal.writes(Journal(WHOLE, "0" * 64)))


def end(target: Target, update: SlotUpdate) -> None:
    """Empty the journal and make the slot start next."""
    _note(target, update, None)
    write(target, update.record, update.after)


def forget(target: Target, record: Record) -> None:
    """Empty the journal."""
    _write(target, record.start, journal.writes(None))


def is_due(target: Target, update: SlotUpdate) -> bool:
    """Whether the state on the target is not yet the one after the update."""
    record = update.record
    return _state(target, update) != update.after or _journal(target, record.start, record.size) is not None


def _state(target: Target, update: SlotUpdate) -> SlotState | None:
    if Ability.READ not in target.abilities:
        return None
    return slots.decode_state_or(copies(target, update.record.start))


def _note(target: Target, update: SlotUpdate, entry: Journal | None) -> None:
    record = update.record
    known = Ability.READ in target.abilities
    if record.size >= journal.END and (not known or _journal(target, record.start, record.size) != entry):
        _write(target, record.start, journal.writes(entry))


def _journal(target: Target, start: int, size: int) -> Journal | None:
    if size < journal.END or Ability.READ not in target.abilities:
        return None
    return journal.decode(lambda offset, length: target.read(start + offset, length))


def _write(target: Target, start: int, pieces: list[tuple[int, bytes]]) -> None:
    for offset, data in pieces:
        view, place = memoryview(data), start + offset
        while view:
            done = target.write(place, view)
            if done <= 0:
                raise OSError("the device takes no more data")
            view, place = view[done:], place + done
        target.flush_part(start + offset, len(data))
