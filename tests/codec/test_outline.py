# SPDX-License-Identifier: Apache-2.0
"""Searches guided by a fast codec: what it tells about content, and how few calls of a slow codec remain."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.codec import deflate, zstd
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.outline import STEP_MAX, Outline
from erofs_edge.codec.search import GUIDE_MIN, GUIDED, SearchedOutput
from erofs_edge.codec.zstd import Outlines

CAPACITY = 65536


def mixed(stretches: int, seed: int = 1) -> bytes:
    """100,000 bytes each of noise and text, alternating."""
    rng = random.Random(seed)
    known = [b"%x" % rng.getrandbits(rng.choice([8, 16, 32])) for _ in range(2000)]
    return b"".join(
        rng.randbytes(100_000) if one % 2 else b" ".join(rng.choices(known, k=40_000))[:100_000]
        for one in range(stretches)
    )


def counted(compress: Callable[[int, int], bytes], lengths: list[int]) -> Callable[[int, int], bytes]:
    def call(address: int, length: int) -> bytes:
        lengths.append(length)
        return compress(address, length)

    return call


def halves(_piece: memoryview) -> int:
    return len(_piece) // 2


def test_an_outline_tells_noise_from_what_shrinks() -> None:
    data = random.Random(2).randbytes(3 * STEP_MAX) + bytes(2 * STEP_MAX)
    outline = Outlines()(address_of(data), len(data), CAPACITY)
    assert outline.before(3 * STEP_MAX) == (3 * STEP_MAX, 0)
    plain, packed = outline.before(len(data))
    assert plain == 3 * STEP_MAX
    assert 0 < packed < 100
    assert outline.end_of(STEP_MAX, 1.0) == STEP_MAX
    assert outline.end_of(3 * STEP_MAX, 1.0) == 3 * STEP_MAX
    assert outline.end_of(1e9, 1.0) == len(data)


def test_an_outline_looks_no_further_than_it_is_asked() -> None:
    data, looked = bytes(50 * STEP_MAX), []

    def measure(piece: memoryview) -> int:
        looked.append(len(piece))
        return len(piece) // 2

    outline = Outline(address_of(data), len(data), CAPACITY, measure)
    assert outline.end_of(STEP_MAX, 1.0) == 2 * STEP_MAX
    assert len(looked) == 2
    outline.before(3 * STEP_MAX - 1)
    outline.before(STEP_MAX)
    assert looked == [STEP_MAX] * 3


@given(
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=9),
    last=st.integers(1, STEP_MAX),
    factor=st.floats(0.25, 2.0),
    share=st.floats(0.01, 0.99),
)
def test_both_ways_through_an_outline_meet(sizes: list[int], last: int, factor: float, share: float) -> None:
    length = (len(sizes) - 1) * STEP_MAX + last
    data, left = bytes(length), iter(sizes)
    outline = Outline(address_of(data), length, CAPACITY, lambda _piece: next(left))
    plain, packed = outline.before(length)
    wanted = share * (plain + factor * packed)
    end = outline.end_of(wanted, factor)
    assert 0 <= end <= length
    sized = [a + factor * b for a, b in (outline.before(end), outline.before(min(length, end + 1)))]
    assert sized[0] - 0.001 <= wanted <= sized[1] + 0.001


@pytest.mark.parametrize("capacity", [GUIDE_MIN, CAPACITY])
def test_few_calls_where_noise_and_text_alternate(capacity: int) -> None:
    data, lengths = mixed(8), list[int]()
    compress = counted(deflate._Compress(deflate._library(), 6), lengths)
    one = SearchedOutput(compress, capacity, 0, Outlines(), deflate.OUTLINE_FACTOR)
    at = calls = consumed = 0
    while len(data) - at > 4 * capacity:
        consumed, produced = one.fill(address_of(data) + at, len(data) - at, guess=consumed)
        assert capacity - (capacity >> 7) <= produced <= capacity
        assert deflate.decompress(one.padded(produced, produced), consumed) == data[at : at + consumed]
        at, calls = at + consumed, calls + 1
    assert calls > 4
    assert len(lengths) < 3 * calls  # on lines between sizes it were more than four each


def test_a_slow_level_of_zstd_is_guided_and_a_fast_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(self: Outlines, address: int, length: int, capacity: int) -> Outline:
        asked.append(capacity)
        return Outline(address, length, capacity, halves)

    monkeypatch.setattr(Outlines, "__call__", noted)
    data = mixed(3)
    for level, capacity in ((zstd.SLOW - 1, CAPACITY), (zstd.SLOW, GUIDE_MIN - 1), (zstd.SLOW, CAPACITY)):
        zstd.compressor(level, capacity, 0, 17).fill(address_of(data), len(data))
    assert asked == [CAPACITY]


def test_the_same_whatever_was_guessed() -> None:
    """If a guide is asked first, cuts depend only on the content."""
    data = mixed(4)
    one = deflate.compressor(6, CAPACITY, 0)
    results = {one.fill(address_of(data), len(data), guess=guess) for guess in (0, 1, 70_000, 200_000)}
    assert len(results) == 1


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.booleans(), st.integers(0, 40_000)), min_size=1, max_size=12),
    told=st.integers(1, 9000),
    factor=st.floats(0.3, 1.9),
)
def test_a_guided_search_ends_whatever_both_codecs_do(sizes: list[tuple[bool, int]], told: int, factor: float) -> None:
    data, lengths = bytes(600_000), list[int]()

    def jumpy(_address: int, length: int) -> bytes:
        flat, size = sizes[length % len(sizes)]
        return bytes(size if flat else length * size // 40_000)

    def guide(address: int, length: int, capacity: int) -> Outline:
        return Outline(address, length, capacity, lambda _piece: told)

    one = SearchedOutput(counted(jumpy, lengths), GUIDE_MIN, 0, guide, factor)
    consumed, produced = one.fill(address_of(data), len(data))
    assert 0 <= produced <= GUIDE_MIN
    assert consumed <= len(data)
    assert len(lengths) <= GUIDED + 1 + 2 * len(data).bit_length()
    assert len(one.padded(produced, produced)) == produced
