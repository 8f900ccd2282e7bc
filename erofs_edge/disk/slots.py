# SPDX-License-Identifier: Apache-2.0
"""The slot state in the `misc` partition: which slot starts next, and how many attempts each has left.

Two copies, each a U-Boot environment block without redundancy flag: crc32 of the rest, little-endian, then NAME=VALUE
strings each ended by NUL, one more NUL, padding of NUL (U-Boot ``include/env_internal.h`` env_t; what ``env import
-c``, ``env export -c``, ``fw_printenv`` and ``mkenvimage -p 0`` read and write). The variables are those of RAUC's
U-Boot integration: BOOT_ORDER="A B", BOOT_A_LEFT=3.

The first copy with a correct checksum counts. A change writes the other copy first and then the one that was read, so a
power cut leaves either the old state or the new one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from erofs_edge.errors import CapacityError, FormatError

ENV_SIZE = 16 << 10
ENV_OFFSETS = (0, 64 << 10)
"""bytes, of the two copies in the partition"""
STATE_SIZE = ENV_OFFSETS[-1] + ENV_SIZE

ATTEMPTS = 3
"""of a slot that has not yet proved that it works"""
GOOD_ATTEMPTS = 4
"""of one that has: the boot script takes one before each start, so a slot that never confirms is on trial again"""
RECOVERY = "RECOVERY"
"""the slot that updates leave alone unless it is named"""
LEFT_MAX = 9  # U-Boot's setexpr counts in hexadecimal, its test in decimal: they agree on single digits

_NAME = r"[A-Za-z0-9_.-]+"


class SlotState(NamedTuple):
    """`order`: slots ("A", "B"), the first is tried first. `left`: attempts left by slot, 0 to 9."""

    order: tuple[str, ...]
    left: Mapping[str, int]


def initial(slots: Sequence[str]) -> SlotState:
    """The state of a new disk: slots ('a', 'b') in the order of the board file, all attempts left."""
    names = tuple(slot.upper() for slot in slots)
    return SlotState(names, dict.fromkeys(names, ATTEMPTS))


def activate(state: SlotState, slot: str) -> SlotState:
    """The state with `slot` ('b' or 'B') first and with all attempts; the others follow unchanged."""
    name = _known(state, slot)
    order = (name, *(other for other in state.order if other != name))
    return state._replace(order=order, left={**state.left, name: ATTEMPTS})


Standing = Literal["good", "pending", "bad"]


def standing(state: SlotState, slot: str) -> Standing:
    """The status of a slot: it has proved that it works, has attempts left to do so, or is no longer started.

    RAUC's two words follow from it: whatever is not 'bad' is good to RAUC.
    """
    left = state.left.get(_known(state, slot), 0)
    if not left or slot.upper() not in state.order:
        return "bad"
    return "good" if left >= GOOD_ATTEMPTS else "pending"


def mark(state: SlotState, slot: str, standing: Standing) -> SlotState:
    """The state with a slot 'good', 'bad', or 'pending' with all attempts of a trial. The order is kept."""
    name = _known(state, slot)
    order = state.order if name in state.order else (*state.order, name)
    left = {"good": GOOD_ATTEMPTS, "pending": ATTEMPTS, "bad": 0}[standing]
    return state._replace(order=order, left={**state.left, name: left})


def retire(state: SlotState, slot: str) -> SlotState:
    """The state before a slot is written: it is last and has no attempts, so that nothing starts it half written."""
    name = _known(state, slot)
    order = (*(other for other in state.order if other != name), name)
    return state._replace(order=order, left={**state.left, name: 0})


def active(state: SlotState) -> str:
    """The slot that starts next."""
    return choose(state)[0]


def mainstay(state: SlotState) -> str:
    """The most important slot: the first good one, else the one that starts next."""
    return next((name for name in state.order if standing(state, name) == "good"), active(state))


def spare(state: SlotState) -> str:
    """The slot that an update may overwrite: never the mainstay, if there is another.

    Of the others it is the last in the order, and the recovery slot only if there is no other.
    """
    kept = mainstay(state)
    names = [*state.order, *(name for name in state.left if name not in state.order)]
    others = [name for name in names if name not in (kept, RECOVERY)]
    return others[-1] if others else kept


def choose(state: SlotState) -> tuple[str, SlotState]:
    """The slot that the boot script starts, and the state that it writes before that.

    If no slot has an attempt left, all get theirs back: a board that keeps trying is better than a dead one.
    """
    for name in state.order:
        if state.left.get(name, 0) > 0:
            return name, state._replace(left={**state.left, name: state.left[name] - 1})
    return choose(initial(tuple(state.left)))


def encode_copy(state: SlotState) -> bytes:
    """One copy, ENV_SIZE bytes."""
    return encode({"BOOT_ORDER": " ".join(state.order)} | {f"BOOT_{n}_LEFT": str(v) for n, v in state.left.items()})


def writes(raw: bytes, state: SlotState) -> list[tuple[int, bytes]]:
    """How to change the state of a partition that starts with `raw`: (byte offset, copy), to be flushed one by one.

    The copy that is not in effect goes first, so that one copy is intact at every moment.
    """
    try:
        _, counts = decode_state(raw)
    except FormatError:
        counts = ENV_OFFSETS[0]
    block = encode_copy(state)
    return [(offset, block) for offset in sorted(ENV_OFFSETS, key=lambda offset: offset == counts)]


def encode_state(state: SlotState) -> bytes:
    """Both copies and the space between them: STATE_SIZE bytes for the start of the partition."""
    block = encode_copy(state)
    image = bytearray(STATE_SIZE)
    for offset in ENV_OFFSETS:
        image[offset : offset + ENV_SIZE] = block
    return bytes(image)


def decode_state(raw: bytes) -> tuple[SlotState, int]:
    """The state, and the byte offset of the copy that it comes from. Raises FormatError if neither copy is intact."""
    problem: FormatError | None = None
    for offset in ENV_OFFSETS:
        try:
            return _state(decode(raw[offset : offset + ENV_SIZE], offset), offset), offset
        except FormatError as error:
            problem = problem or error
    raise problem or FormatError("no slot state")


def decode_state_or(raw: bytes, default: SlotState | None = None) -> SlotState | None:
    """The state as in decode_state, or `default` if neither copy is intact."""
    try:
        return decode_state(raw)[0]
    except FormatError:
        return default


def encode(variables: Mapping[str, str], size: int = ENV_SIZE) -> bytes:
    """An environment block of `size` bytes, variables in the order given.

    Raises FormatError on a name or value that U-Boot could not read back, CapacityError if they do not fit.
    """
    data = bytearray()
    for name, value in variables.items():
        if not re.fullmatch(_NAME, name) or "\0" in value or not value.isascii():
            raise FormatError(f"{name}={value!r} cannot be part of a U-Boot environment")
        data += f"{name}={value}\0".encode("ascii")
    data += b"\0"
    room = size - 4
    if len(data) > room:
        raise CapacityError(f"the environment takes {len(data)} bytes, {room} fit")
    padded = bytes(data.ljust(room, b"\0"))
    return zlib.crc32(padded).to_bytes(4, "little") + padded


def decode(raw: bytes, offset: int = 0) -> dict[str, str]:
    """The variables of a block whose size is len(raw). Raises FormatError; `offset` is where it was read, in bytes."""
    if len(raw) < 6 or int.from_bytes(raw[:4], "little") != zlib.crc32(raw[4:]):
        raise FormatError("the checksum of the U-Boot environment does not match", where=f"offset {offset:#x}")
    variables = {}
    for entry in raw[4:].partition(b"\0\0")[0].split(b"\0"):
        if not entry:
            continue
        name, equals, value = entry.partition(b"=")
        try:
            variables[name.decode("ascii")] = value.decode("ascii")
        except UnicodeDecodeError:
            equals = b""
        if not equals or not name:
            raise FormatError(f"{entry[:40]!r} is no variable", where=f"offset {offset:#x}")
    return variables


def _state(variables: Mapping[str, str], offset: int) -> SlotState:
    left = {}
    for name, value in variables.items():
        if match := re.fullmatch(r"BOOT_([A-Z0-9]+)_LEFT", name):
            if not re.fullmatch(rf"[0-{LEFT_MAX}]", value):
                raise FormatError(f"{name}={value!r} is no count of attempts", where=f"offset {offset:#x}")
            left[match[1]] = int(value)
    order = tuple(variables.get("BOOT_ORDER", "").split())
    if not order or any(name not in left for name in order):
        raise FormatError("BOOT_ORDER names no slot, or one without attempts", where=f"offset {offset:#x}")
    return SlotState(order, left)


def _known(state: SlotState, slot: str) -> str:
    """'B' for 'b' or 'B'. Raises FormatError for a slot that does not exist."""
    name = slot.upper()
    if name not in state.left:
        raise FormatError(f"no slot {slot!r}", hint=f"slots: {', '.join(state.left)}")
    return name
