# SPDX-License-Identifier: Apache-2.0
"""Reed-Solomon words: what the definition says, and every error within the bound corrected."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.verity import rs


def reference_parity(word: bytes, roots: int) -> bytes:
    """Remainder of word(x) * x^roots by the generator, by long division."""
    divisor = rs.generator(roots)[::-1]
    rest = list(word) + [0] * roots
    for i in range(len(word)):
        factor = rest[i]
        for j, c in enumerate(divisor):
            rest[i + j] ^= rs.multiply(factor, c)
    return bytes(rest[-roots:])


def test_golden() -> None:
    assert rs.generator(2) == [2, 3, 1]
    assert rs.multiply(0x80, 2) == 0x1D
    assert all(rs.multiply(a, rs.inverse(a)) == 1 for a in range(1, 256))
    word = bytes(range(253))
    assert rs.parity([np.array([v], np.uint8) for v in word], 2).tobytes().hex() == "3ec2"


@pytest.mark.parametrize("roots", [2, 3, 7, 16, 24])
def test_parity_is_the_remainder(roots: int) -> None:
    chance = random.Random(roots)
    words = [chance.randbytes(255 - roots) for _ in range(5)]
    rows = [np.array(list(symbols), np.uint8) for symbols in zip(*words, strict=True)]
    found = rs.parity(rows, roots)
    assert [found[:, n].tobytes() for n in range(5)] == [reference_parity(word, roots) for word in words]
    short = rs.parity(rows[:9], roots)
    assert short[:, 0].tobytes() == reference_parity(words[0][:9] + bytes(246 - roots), roots)


@settings(max_examples=60, deadline=None)
@given(roots=st.integers(2, 24), seed=st.integers(0, 1 << 32), data=st.data())
def test_errors_and_erasures_within_the_bound(roots: int, seed: int, data: st.DataObject) -> None:
    """2 * errors + erasures <= roots: each word becomes right, and only what was wrong changes."""
    count = data.draw(st.integers(0, roots))
    chance = random.Random(seed)
    width = 20
    rows = np.array([list(chance.randbytes(width)) for _ in range(255 - roots)], np.uint8)
    word = np.concatenate([rows, rs.parity(list(rows), roots)])
    broken = word.copy()
    erasures = chance.sample(range(255), count)
    for position in erasures:
        broken[position] = list(chance.randbytes(width))
    for column in range(width):
        for position in chance.sample(range(255), chance.randint(0, (roots - count) // 2)):
            broken[position, column] ^= chance.randint(1, 255)
    found = rs.syndromes(rs.parity(list(broken[: 255 - roots]), roots) ^ broken[255 - roots :])
    corrections, ok = rs.decode(found, erasures)
    for position, values in corrections.items():
        broken[position] ^= values
        found = rs.shifted(found, position, values)
    assert ok.all()
    assert (broken == word).all()
    assert not found.any()


def test_what_cannot_be_corrected_is_not_touched() -> None:
    found = np.array([[1], [0]], np.uint8)  # two roots, one of two syndromes: no single error looks like that
    corrections, ok = rs.decode(found, [])
    assert not ok.any()
    assert not any(values.any() for values in corrections.values())
