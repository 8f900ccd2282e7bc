# SPDX-License-Identifier: Apache-2.0
"""Where in some content there is how much: what a fast codec makes of it, piece by piece.

A slower one's sizes follow these by one factor, as long as what shrinks is told from what does not: from one call of it
the next is known where content changes from one into the other, which no line through two sizes is near.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from erofs_edge.codec.search import memory

STEP_SHIFT, STEP_MIN, STEP_MAX = 3, 1024, 8192  # bytes of a piece: output bytes >> this, from, to

Measure = Callable[[memoryview], int]
"""bytes of a fast codec's output for a piece, those before it known"""


class Outline:
    """Sizes for the `length` bytes at `address`; only what is asked for is looked at."""

    def __init__(self, address: int, length: int, capacity: int, measure: Measure) -> None:
        """`capacity`: bytes that the slower codec's output is to fill; `measure` is one stream, from its start on."""
        self._address, self._length, self._measure = address, length, measure
        self._step = min(max(capacity >> STEP_SHIFT, STEP_MIN), STEP_MAX)
        # bytes up to the end of each piece: of the pieces that do not shrink, and of what becomes of the others
        self._plain, self._packed = [0], [0]

    def before(self, end: int) -> tuple[float, float]:
        """(bytes of pieces that do not shrink, bytes that the others take) of the first `end`."""
        number, rest = divmod(end, self._step)
        while len(self._plain) <= number + bool(rest):
            self._look()
        if not rest:
            return self._plain[number], self._packed[number]
        part = rest / min(self._step, self._length - number * self._step)
        plain, packed = self._plain[number], self._packed[number]
        return (
            plain + (self._plain[number + 1] - plain) * part,
            packed + (self._packed[number + 1] - packed) * part,
        )

    def end_of(self, wanted: float, factor: float) -> int:
        """How many bytes take `wanted`, where those that shrink take `factor` times what the fast codec makes of them;
        all, where these take less."""
        while self._plain[-1] + factor * self._packed[-1] < wanted:
            if (len(self._plain) - 1) * self._step >= self._length:
                return self._length
            self._look()
        sizes = range(len(self._plain))
        number = bisect_left(sizes, wanted, key=lambda n: self._plain[n] + factor * self._packed[n]) - 1
        if number < 0:
            return 0
        size = self._plain[number] + factor * self._packed[number]
        more = self._plain[number + 1] + factor * self._packed[number + 1] - size
        start = number * self._step
        return start + int((wanted - size) * min(self._step, self._length - start) / more)

    def _look(self) -> None:
        start = (len(self._plain) - 1) * self._step
        length = min(self._step, self._length - start)
        size = self._measure(memory(self._address + start, length))
        shrinks = size < length
        self._plain.append(self._plain[-1] + (0 if shrinks else length))
        self._packed.append(self._packed[-1] + (size if shrinks else 0))
