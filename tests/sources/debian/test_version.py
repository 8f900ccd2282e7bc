# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.sources.debian.version import relations, satisfies, version_key

ASCENDING = [
    "0~~", "0~~a", "0~", "0", "0a", "0+", "0.", "1.0~rc1-1", "1.0-0+b1", "1.0-1~bpo12+1", "1.0-1", "1.0-1+b1",
    "1.0-1+deb13u1", "1.0a-1", "1.0.1-1", "1.2", "1.10", "1:0.1", "1:0.1-1", "10:0",
]  # fmt: skip


def test_order() -> None:
    shuffled = random.Random(3).sample(ASCENDING, len(ASCENDING))
    assert sorted(shuffled, key=version_key) == ASCENDING


def test_equal_in_other_words() -> None:
    for one, other in (("1.0", "1.0-0"), ("0:1.0", "1.0"), ("1.00", "1.0"), ("1.0-00", "1.0-0"), ("1a", "1a0")):
        assert version_key(one) == version_key(other)


def test_dpkg_agrees() -> None:
    chooser = random.Random(11)
    alphabet = "0123456789019abz.+~-"
    versions = [*ASCENDING, *("1" + "".join(chooser.choices(alphabet, k=chooser.randint(0, 6))) for _ in range(60))]
    pairs = [(chooser.choice(versions), chooser.choice(versions)) for _ in range(400)]
    pairs = [(a, b) for a, b in pairs if not a.endswith("-") and not b.endswith("-")]
    script = "".join(f"dpkg --compare-versions '{a}' lt '{b}' && echo 1 || echo 0\n" for a, b in pairs)
    answers = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True).stdout.split()
    assert answers == [str(int(satisfies(a, "<<", b))) for a, b in pairs]


@given(*(st.text("0123456789abAB.+~-:", min_size=1, max_size=12) for _ in range(3)))
def test_a_total_order(a: str, b: str, c: str) -> None:
    one, two, three = sorted([version_key("1" + text) for text in (a, b, c)])
    assert one <= two <= three
    assert one <= three


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("", []),
        ("a", [("a", "", "")]),
        ("a (<< 1:2~), b(>=3) ,\n c:any (= 4-1), libc++ (> 5), d (< 6)", [
            ("a", "<<", "1:2~"), ("b", ">=", "3"), ("c", "=", "4-1"), ("libc++", ">=", "5"), ("d", "<=", "6"),
        ]),
        ("a (<< ), -x, b", [("b", "", "")]),
    ],
)  # fmt: skip
def test_relations(field: str, expected: list[tuple[str, str, str]]) -> None:
    assert list(relations(field)) == expected
