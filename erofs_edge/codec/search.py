# SPDX-License-Identifier: Apache-2.0
"""A fixed output size for codecs that have none: find how much input fits, guided by what a fast codec makes of it.

What this tries decides the bytes of images: raise cut_rules.RULES with a change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

FIRST_RATIO = 2.5  # of input to output, where nothing is known yet
STOP_SHIFT, STOP_MIN = 7, 32  # a fit that leaves less than capacity >> STOP_SHIFT bytes is good enough
BRACKET_MIN = 16  # bytes of input between a fit and a misfit below which searching on is in vain
GUIDE_MIN = 16 << 10  # output bytes below which a fast codec's answer comes too late
GUIDED, LINES = 4, 8  # calls, guided or not, after which what is unknown is halved: this codec keeps no rule
FACTOR_MIN, FACTOR_MAX = 0.25, 2.0  # of its sizes to that one's, of what shrinks

_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ = 0x100  # PyBUF_READ


def memory(address: int, length: int) -> memoryview:
    """A view of the `length` bytes at `address`, valid as long as they are."""
    view: memoryview = _memory(address, length, _READ)
    return view


class Guide(Protocol):
    """See `outline.Outline`."""

    def before(self, end: int) -> tuple[float, float]: ...

    def end_of(self, wanted: float, factor: float) -> int: ...


class SearchedOutput:
    """A compressor for one thread: as much input as fits `capacity` output bytes, as `lz4.FixedOutput`.

    compress  (address, length) → the compressed bytes, whatever their number
    capacity  output bytes of a call at most
    padding   zero bytes that stand before the output, for `padded`
    guide     (address, length, capacity) → what a fast codec makes of it; None: there is no faster one
    factor    of this codec's sizes to the fast one's, of what shrinks
    """

    def __init__(
        self,
        compress: Callable[[int, int], bytes],
        capacity: int,
        padding: int = 0,
        guide: Callable[[int, int, int], Guide] | None = None,
        factor: float = 1.0,
    ) -> None:
        self._compress, self._guide, self._factor = compress, guide, factor
        self._capacity = capacity
        self._padding = padding
        self._output = b""

    def fill(self, address: int, length: int, capacity: int | None = None, *, guess: int = 0) -> tuple[int, int]:
        """Compress from the `length` bytes at `address`: (bytes consumed, bytes produced).

        `guess` is what a call on data like this consumed; a good one saves time and may change the result a little.
        It never stops without a fit where a prefix of more than a few bytes fits.
        """
        capacity = self._capacity if capacity is None else capacity
        near_enough = max(STOP_MIN, capacity >> STOP_SHIFT)
        tried = min(length, guess or int(capacity * FIRST_RATIO))
        outline = self._guide if capacity >= GUIDE_MIN else None
        known = _Known(length, capacity - (near_enough * 3 // 8 if outline else near_enough // 2))
        if outline and tried < length:
            tried = known.follow(outline(address, length, capacity), self._factor)
        self._output = b""
        while True:
            output = self._compress(address, tried)
            if len(output) <= capacity:
                self._output = output
            known.note(tried, len(output), fits=len(output) <= capacity)
            fits, size, over = known.fits, known.fits_size, known.over
            if fits == length or (fits and capacity - size <= near_enough) or over - fits <= BRACKET_MIN:
                return fits, size
            if outline and known.guide is None:
                known.guide = outline(address, length, capacity)
            tried = known.next()

    def padded(self, produced: int, size: int) -> bytes:
        """The last call's `produced` bytes at the end of `size` bytes, zeros before them."""
        if produced != len(self._output) or not produced <= size <= produced + self._padding:
            raise ValueError(f"cannot pad {produced} bytes to {size}")
        return bytes(size - produced) + self._output


class _Known:
    """What a search knows: the longest input that fits and the shortest that does not, with their outputs' bytes."""

    def __init__(self, length: int, target: int) -> None:
        """`target`: bytes of output that are wanted."""
        self.fits = self.fits_size = self.over_size = self.calls = 0
        self.over = length + 1  # while over_size is 0, nothing has been too much
        self.guide: Guide | None = None
        self._length, self._target, self._factor = length, target, 1.0
        self._last = 0, 0

    def note(self, length: int, size: int, *, fits: bool) -> None:
        """What one call gave."""
        self.calls += 1
        self._last = length, size
        if fits:
            self.fits, self.fits_size = length, size
        else:
            self.over, self.over_size = length, size

    def follow(self, guide: Guide, factor: float) -> int:
        """The first length to try, by a guide."""
        self.guide, self._factor = guide, factor
        return max(1, guide.end_of(self._target, factor))

    def next(self) -> int:
        """The next length to try."""
        if self.calls > (GUIDED if self.guide else LINES):
            return self._half()
        return self._guided(self.guide) if self.guide else self._on_a_line()

    def _half(self) -> int:
        """The length in the middle, or twice what fits."""
        return (self.fits + self.over) // 2 if self.over_size else min(self._length, 2 * self.fits)

    def _guided(self, guide: Guide) -> int:
        """By what the guide says between those that are known, or beyond the last one."""
        if self.fits and self.over_size:
            size, size_over = self._told(guide, self.fits), self._told(guide, self.over)
            share = (self._target - self.fits_size) / (self.over_size - self.fits_size)
            wanted = size + share * (size_over - size)
        else:
            wanted = self._calibrate(guide)
        margin = BRACKET_MIN // 2
        most = self.over - margin if self.over_size else self._length
        return min(most, max(self.fits + margin, guide.end_of(wanted, self._factor)))

    def _on_a_line(self) -> int:
        """On the line through both, clear of the ends."""
        if not self.over_size:
            return min(self._length, max(self.fits + BRACKET_MIN, self._target * self.fits // self.fits_size))
        gap = self.over - self.fits
        margin = max(BRACKET_MIN // 2, gap >> 4)
        wanted = self.fits + (self._target - self.fits_size) * gap // (self.over_size - self.fits_size)
        return min(self.over - margin, max(self.fits + margin, wanted))

    def _told(self, guide: Guide, length: int) -> float:
        plain, packed = guide.before(length)
        return plain + self._factor * packed

    def _calibrate(self, guide: Guide) -> float:
        """The guide's bytes to end at, by the last call alone, and from now on the factor that it had."""
        length, size = self._last
        plain, packed = guide.before(length)
        factor = (size - plain) / packed if packed else 0.0
        if FACTOR_MIN <= factor <= FACTOR_MAX:
            self._factor = factor
            return self._target
        self._factor = 1.0  # it shrinks what the fast one does not
        return self._target * (plain + packed) / max(1, size)
