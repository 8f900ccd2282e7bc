# SPDX-License-Identifier: Apache-2.0
"""Slot state: bytes that U-Boot's own tools make and read, and one intact copy whatever happens."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.disk import slots
from erofs_edge.disk.slots import ENV_OFFSETS, ENV_SIZE, SlotState
from erofs_edge.errors import CapacityError, FormatError

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=100)


def test_golden() -> None:
    raw = slots.encode({"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3"}, 64)
    body = b"BOOT_ORDER=A B\0BOOT_A_LEFT=3\0\0".ljust(60, b"\0")
    assert raw == zlib.crc32(body).to_bytes(4, "little") + body
    assert raw[:4].hex() == "c93f2bf1"


@pytest.mark.oracle
@pytest.mark.parametrize("size", [64, ENV_SIZE])
def test_mkenvimage_makes_the_same(size: int, oracle: Callable[[str], str]) -> None:
    text = b"BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=0\n"
    command = [oracle("mkenvimage"), "-s", str(size), "-p", "0", "-o", "-", "-"]
    made = subprocess.run(command, input=text, capture_output=True, check=True).stdout
    assert made == slots.encode({"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"}, size)


@given(st.dictionaries(NAMES, VALUES, max_size=20))
def test_round_trip(variables: dict[str, str]) -> None:
    assert slots.decode(slots.encode(variables)) == variables


@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_every_flipped_bit_is_seen(position: int, bit: int) -> None:
    raw = bytearray(slots.encode({"BOOT_ORDER": "A B"}, 64))
    raw[position] ^= 1 << bit
    with pytest.raises(FormatError):
        slots.decode(bytes(raw))


def test_what_cannot_be_stored() -> None:
    for name, value in (("", "x"), ("a=b", "x"), ("a", "x\0y"), ("a", "ü"), ("a\n", "x")):
        with pytest.raises(FormatError):
            slots.encode({name: value})
    assert slots.encode({"a": "x" * 56}, 64)  # 4 + len("a=") + 56 + two NULs fill it exactly
    with pytest.raises(CapacityError):
        slots.encode({"a": "x" * 57}, 64)


def test_initial_state_of_a_disk() -> None:
    raw = slots.encode_state(slots.initial(["a", "b"]))
    assert len(raw) == slots.STATE_SIZE == 80 << 10
    assert ENV_OFFSETS == (0, 64 << 10)
    for offset in ENV_OFFSETS:
        variables = slots.decode(raw[offset : offset + ENV_SIZE])
        assert variables == {"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "3"}
    assert not any(raw[ENV_SIZE : ENV_OFFSETS[1]])


def test_one_torn_copy_does_no_harm() -> None:
    old = slots.initial(["a", "b"])
    new = slots.activate(old, "b")
    before, after = slots.encode_state(old), slots.encode_state(new)
    for cut in (0, 1, 100, ENV_SIZE - 1):  # the first copy is being written, the second still holds the old state
        torn = after[:cut] + b"\xff" + before[cut + 1 :]
        assert slots.decode_state(torn) == (old, ENV_OFFSETS[1])
    second_torn = bytearray(after)
    second_torn[ENV_OFFSETS[1] + 5] ^= 1
    assert slots.decode_state(bytes(second_torn)) == (new, 0)
    with pytest.raises(FormatError, match="checksum") as caught:
        slots.decode_state(bytes(slots.STATE_SIZE))
    assert caught.value.where == "offset 0x0"
    with pytest.raises(FormatError):
        slots.decode_state(b"")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"BOOT_ORDER": ""},
        {"BOOT_ORDER": "A", "BOOT_B_LEFT": "1"},
        {"BOOT_ORDER": "A", "BOOT_A_LEFT": "10"},
        {"BOOT_ORDER": "A", "BOOT_A_LEFT": "-1"},
        {"BOOT_ORDER": "A", "BOOT_A_LEFT": ""},
    ],
)
def test_states_that_make_no_sense(variables: dict[str, str]) -> None:
    with pytest.raises(FormatError):
        slots.decode_state(slots.encode(variables))


def test_choice_counts_down_and_falls_over() -> None:
    state = slots.initial(["a", "b"])
    started = []
    for _ in range(7):
        slot, state = slots.choose(state)
        started.append(slot)
    assert started == ["A", "A", "A", "B", "B", "B", "A"]  # none left: all get theirs back
    assert state == SlotState(("A", "B"), {"A": 2, "B": 3})


def test_activate() -> None:
    state = SlotState(("A", "B"), {"A": 3, "B": 0})
    assert slots.activate(state, "b") == SlotState(("B", "A"), {"A": 3, "B": 3})
    assert slots.choose(slots.activate(state, "B"))[0] == "B"
    with pytest.raises(FormatError, match="no slot"):
        slots.activate(state, "c")


def test_standing_and_marks() -> None:
    state = slots.initial(["a", "b"])
    assert [slots.standing(state, slot) for slot in "ab"] == ["pending", "pending"]
    good = slots.mark(state, "a", "good")
    assert (good.left["A"], slots.standing(good, "a")) == (4, "good")
    chosen, started = slots.choose(good)  # the boot script takes an attempt: on trial until it says that it is well
    assert (chosen, slots.standing(started, "a")) == ("A", "pending")
    bad = slots.mark(good, "B", "bad")
    assert (bad.order, slots.standing(bad, "b")) == (("A", "B"), "bad")
    assert slots.mark(SlotState(("A",), {"A": 3, "B": 0}), "b", "pending").order == ("A", "B")
    assert slots.standing(SlotState(("A",), {"A": 3, "B": 3}), "b") == "bad"
    with pytest.raises(FormatError, match="no slot"):
        slots.mark(state, "c", "good")


def test_the_mainstay_and_the_spare() -> None:
    def state(order: str, **left: int) -> SlotState:
        return SlotState(tuple(order.split()), {name.upper(): value for name, value in left.items()})

    cases = {
        ("A B", 3, 3): ("A", "B"),
        ("B A", 3, 4): ("B", "A"),
        ("B A", 4, 3): ("A", "B"),  # b is new and has yet to show that it works
        ("B A", 4, 0): ("A", "B"),
        ("A B", 4, 4): ("A", "B"),
        ("A", 2, 0): ("A", "B"),
        ("A B", 0, 0): ("A", "B"),
    }
    for (order, a, b), (mainstay, spare) in cases.items():
        assert (slots.mainstay(state(order, a=a, b=b)), slots.spare(state(order, a=a, b=b))) == (mainstay, spare)
    three = state("A B RECOVERY", a=4, b=3, recovery=3)
    assert slots.spare(three) == "B"
    assert slots.spare(state("A RECOVERY", a=4, recovery=3)) == "A"
    assert slots.spare(state("A", a=4)) == "A"


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from([("A", "B"), ("B", "A"), ("A",), ("B",)]))
def test_an_update_never_takes_the_mainstay(a: int, b: int, order: tuple[str, ...]) -> None:
    state = SlotState(order, {"A": a, "B": b})
    assert slots.spare(state) != slots.mainstay(state)
    retired = slots.retire(state, slots.spare(state))
    assert slots.active(retired) == slots.mainstay(state) or not retired.left[slots.mainstay(state)]
