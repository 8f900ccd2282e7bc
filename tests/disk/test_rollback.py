# SPDX-License-Identifier: Apache-2.0
"""The two records of the minimum version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.disk import rollback, slots
from erofs_edge.errors import FormatError

STATE = slots.encode_state(slots.initial(["a", "b"]))


@given(st.integers(0, rollback.VERSION_MAX))
def test_round_trip(minimum: int) -> None:
    raw = rollback.with_minimum(STATE, minimum)
    assert rollback.decode(raw) == minimum
    assert slots.decode_state(raw)[0] == slots.initial(["a", "b"])


@pytest.mark.parametrize("minimum", [-1, rollback.VERSION_MAX + 1])
def test_a_version_that_cannot_be_recorded(minimum: int) -> None:
    with pytest.raises(FormatError, match="is not between"):
        rollback.encode(minimum)


def test_the_higher_record_counts_whichever_it_is() -> None:
    for low in rollback.OFFSETS:
        raw = bytearray(rollback.with_minimum(STATE, 12))
        raw[low : low + rollback.SIZE] = rollback.encode(11)
        assert rollback.decode(bytes(raw)) == 12


@given(st.sampled_from(rollback.OFFSETS), st.integers(0, rollback.SIZE - 1), st.integers(1, 255))
def test_a_damaged_record_does_not_count(offset: int, byte: int, bits: int) -> None:
    raw = bytearray(rollback.with_minimum(STATE, 3))
    raw[offset + byte] ^= bits
    assert rollback.decode(bytes(raw)) == 3, "the other one does"
    other = sum(rollback.OFFSETS) - offset
    raw[other] ^= 1
    assert rollback.decode(bytes(raw)) is None


def test_what_is_no_number_does_not_count() -> None:
    raw = bytearray(rollback.with_minimum(STATE, 3))
    for offset, value in zip(rollback.OFFSETS, ("", "9999999999"), strict=True):
        raw[offset : offset + rollback.SIZE] = slots.encode({rollback.NAME: value}, rollback.SIZE)
    assert rollback.decode(bytes(raw)) is None
    assert rollback.decode(b"") is None


def test_no_record_overlaps_the_slot_state_or_the_partition_of_a_mebibyte() -> None:
    assert rollback.OFFSETS[0] >= slots.STATE_SIZE
    assert rollback.OFFSETS[1] - rollback.OFFSETS[0] >= 64 << 10, "not in one erase block"
    assert rollback.OFFSETS[1] + rollback.SIZE <= 1 << 20
