# SPDX-License-Identifier: Apache-2.0
"""Fixed-size output for codecs without support for it: search how much input fits, guided by a fast codec's output.

The steps of this search determine the bytes of images: raise cut_rules.RULES with every change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

FIRST_RATIO = 2.5  # input to output, assumed while nothing is known
STOP_SHIFT, STOP_MIN = 7, 32  # a fit that leaves less than capacity >> STOP_SHIFT bytes is good enough
BRACKET_MIN = 16  # bytes of input between fit and misfit below which further search is pointless
GUIDE_MIN = 16 << 10  # output bytes below which asking a fast codec takes too long
GUIDED, LINES = 4, 8  # calls, guided or not, after which the search bisects: this codec follows no rule
FACTOR_MIN, FACTOR_MAX = 0.25, 2.0  # its size to the fast codec's, for compressible pieces

_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ = 0x100  # PyBUF_READ


def memory(address: int, length: int) -> memoryview:
    """Return a view of the `length` bytes at `address`, valid as long as they are."""
    view: memoryview = _memory(address, length, _READ)
    return view


class Guide(Protocol):
    """See `outline.Outline`."""

    def before(self, end: int) -> tuple[float, float]: ...

    def end_of(self, wanted: float, factor: float) -> int: ...


class SearchedOutput:
    """A compressor for one thread: fits as much input as possible into `capacity` output bytes, like `lz4.FixedOutput`.

    compress  (address, length) → the compressed bytes, of any size
    capacity  maximum output bytes of a call
    padding   zero bytes before the output, for `padded`
    guide     (address, length, capacity) → the output sizes of a fast codec; None: there is no faster one
    factor    this codec's size to the fast one's, for compressible pieces
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
        """Compress as many of the `length` bytes at `address` as fit. Return (bytes consumed, bytes produced).

        `guess` is what a call on similar data consumed; a good guess saves time and may change the result a little. The
        search never ends without a fit if a prefix of more than a few bytes fits.
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
        """Return the last call's `produced` bytes, padded with leading zeros to `size` bytes."""
        if produced != len(self._output) or not produced <= size <= produced + self._padding:
            raise ValueError(f"cannot pad {produced} bytes to {size}")
        return bytes(size - produced) + self._output


class _Known:
    """State of a search: the longest input that fits and the shortest that does not, with their output sizes."""

    def __init__(self, length: int, target: int) -> None:
        """`target`: the wanted number of output bytes."""
        self.fits = self.fits_size = self.over_size = self.calls = 0
        self.over = length + 1  # while over_size is 0, no input has been too long
        self.guide: Guide | None = None
        self._length, self._target, self._factor = length, target, 1.0
        self._last = 0, 0

    def note(self, length: int, size: int, *, fits: bool) -> None:
        """Record the result of a call."""
        self.calls += 1
        self._last = length, size
        if fits:
            self.fits, self.fits_size = length, size
        else:
            self.over, self.over_size = length, size

    def follow(self, guide: Guide, factor: float) -> int:
        """Return the first length to try, according to a guide."""
        self.guide, self._factor = guide, factor
        return max(1, guide.end_of(self._target, factor))

    def next(self) -> int:
        """Return the next length to try."""
        if self.calls > (GUIDED if self.guide else LINES):
            return self._half()
        return self._guided(self.guide) if self.guide else self._on_a_line()

    def _half(self) -> int:
        """Return the length in the middle, or twice the one that fits."""
        return (self.fits + self.over) // 2 if self.over_size else min(self._length, 2 * self.fits)

    def _guided(self, guide: Guide) -> int:
        """Interpolate by the guide's sizes between the two known lengths, or extrapolate beyond the last one."""
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
        """Interpolate linearly between the two known lengths, at some distance from both."""
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
        """Return the guide's size to aim at, based on the last call alone, and keep the factor observed there."""
        length, size = self._last
        plain, packed = guide.before(length)
        factor = (size - plain) / packed if packed else 0.0
        if FACTOR_MIN <= factor <= FACTOR_MAX:
            self._factor = factor
            return self._target
        self._factor = 1.0  # it compresses what the fast codec cannot
        return self._target * (plain + packed) / max(1, size)
