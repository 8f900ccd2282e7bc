# SPDX-License-Identifier: Apache-2.0
"""Where in some content how much is compressible: the output of a fast codec, piece by piece.

The sizes of a slower codec differ from these by a constant factor, as long as compressible and incompressible pieces
are kept apart. So one call of it predicts the next one even where content changes from one kind to the other, which
linear interpolation between two sizes would miss.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from erofs_edge.codec.search import memory

STEP_SHIFT, STEP_MIN, STEP_MAX = 3, 1024, 8192  # bytes of a piece: output bytes >> STEP_SHIFT, within these limits

Measure = Callable[[memoryview], int]
"""returns the size in bytes of the fast codec's output for a piece, given the pieces before it"""


class Outline:
    """Compressed sizes for the `length` bytes at `address`. Pieces are measured only when needed."""

    def __init__(self, address: int, length: int, capacity: int, measure: Measure) -> None:
        """`capacity`: output bytes that the slower codec is to fill. `measure` handles one stream, from its start."""
        self._address, self._length, self._measure = address, length, measure
        self._step = min(max(capacity >> STEP_SHIFT, STEP_MIN), STEP_MAX)
        # running totals at the end of each piece: bytes of pieces that do not shrink, and compressed bytes of the
        # others
        self._plain, self._packed = [0], [0]

    def before(self, end: int) -> tuple[float, float]:
        """For the first `end` bytes, return (bytes in pieces that do not shrink, compressed bytes of the others)."""
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
        """Return how many bytes of input take `wanted` bytes of output if compressible pieces take `factor` times their
        size under the fast codec; all, if that takes less."""
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
