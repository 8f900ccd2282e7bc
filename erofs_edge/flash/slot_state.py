# SPDX-License-Identifier: Apache-2.0
"""The slot state on a target: read it, and change it so that a power cut at any moment leaves the old or the new one.

The two copies (disk/slots.py) are written one after the other, each flushed, the one that does not count first. The
journal (disk/journal.py) is written between: after a slot is closed, before it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from erofs_edge.disk import journal, slots
from erofs_edge.disk.journal import Journal
from erofs_edge.disk.slots import SlotState
from erofs_edge.flash.target import Ability, Target

MISC = "misc"
"""the name that the partition has on the stock boards, and in fw_env.config"""


class Record(NamedTuple):
    """The slot-state partition of a target, as read: `start` and `size` in bytes. `damaged`: neither copy is whole, the
    boot loader starts from defaults and `state` is these. `under_way`: what was being written when it stopped."""

    start: int
    size: int
    state: SlotState
    damaged: bool = False
    under_way: Journal | None = None


class SlotUpdate(NamedTuple):
    """A slot that is written while another one stays as it is.

    before   the state while it is half written
    after    the state once it is proved
    image    sha256 of the boot image, hexadecimal
    """

    record: Record
    slot: str
    before: SlotState
    after: SlotState
    image: str


def read(target: Target, start: int, size: int, names: Iterable[str]) -> Record:
    """The record in bytes [start, start + size) of a target. `names`: the slots that a damaged one falls back to."""
    found = slots.decode_state_or(copies(target, start))
    entry = _journal(target, start, size)
    state = found or slots.initial([name.lower() for name in names])
    return Record(start, size, state, damaged=found is None, under_way=entry)


def copies(target: Target, start: int) -> bytes:
    """Both copies of the state as they lie, STATE_SIZE bytes; what is between them is not read."""
    raw = bytearray(slots.STATE_SIZE)
    for offset in slots.ENV_OFFSETS:
        piece = target.read(start + offset, slots.ENV_SIZE)
        raw[offset : offset + len(piece)] = piece
    return bytes(raw)


def write(target: Target, record: Record, state: SlotState) -> None:
    """Change the state. Raises OSError, with the old or the new one in effect."""
    raw = copies(target, record.start) if Ability.READ in target.abilities else b""
    _write(target, record.start, slots.writes(raw, state))


def begin(target: Target, update: SlotUpdate) -> None:
    """Take the slot's attempts away and note what will be written there."""
    if _state(target, update) != update.before:
        write(target, update.record, update.before)
    _note(target, update, Journal(update.slot, update.image))


def end(target: Target, update: SlotUpdate) -> None:
    """Empty the journal, and have the slot started next."""
    _note(target, update, None)
    write(target, update.record, update.after)


def forget(target: Target, record: Record) -> None:
    """Empty the journal."""
    _write(target, record.start, journal.writes(None))


def is_due(target: Target, update: SlotUpdate) -> bool:
    """Whether the state on the target is another than that after the update."""
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
