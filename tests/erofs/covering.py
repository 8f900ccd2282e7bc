# SPDX-License-Identifier: Apache-2.0
"""Pairwise covering arrays: few rows in which every pair of values of two factors occurs together."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering(
    factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool], *, tries: int = 40
) -> tuple[list[Row], set[Pair]]:
    """Return (rows, the pairs for which no allowed row was found); the same factors give the same result."""
    rng = random.Random(1)
    names = list(factors)
    wanted = {frozenset([(a, x), (b, y)]) for a, b in combinations(names, 2) for x in factors[a] for y in factors[b]}
    order = sorted(wanted, key=sorted)
    rows: list[Row] = []
    impossible: set[Pair] = set()
    for pair in order:
        if pair not in wanted:
            continue
        best: tuple[int, Row] | None = None
        for _ in range(tries):
            row = {name: rng.choice(list(factors[name])) for name in names} | dict(pair)
            row = _repaired(row, dict(pair), factors, allowed, rng)
            if allowed(row):
                gain = len(pairs_of(row) & wanted)
                if best is None or gain > best[0]:
                    best = gain, row
        if best is None:
            impossible.add(pair)
            wanted.discard(pair)
        else:
            rows.append(best[1])
            wanted -= pairs_of(best[1])
    return rows, impossible


def _repaired(
    row: Row, fixed: Row, factors: Mapping[str, Sequence[str]], allowed: Callable[[Row], bool], rng: random.Random
) -> Row:
    """Reset single choices to each factor's first value until the row is allowed or nothing is left."""
    free = [name for name in factors if name not in fixed]
    rng.shuffle(free)
    for name in free:
        if allowed(row):
            break
        row = {**row, name: factors[name][0]}
    return row
