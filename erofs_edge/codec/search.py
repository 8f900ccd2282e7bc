# SPDX-License-Identifier: Apache-2.0
"""A fixed output size for codecs that have none: find how much input fits, guided by the ratio."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

FIRST_RATIO = 2.5  # of input to output, where nothing is known yet
STOP_SHIFT, STOP_MIN = 7, 32  # a fit that leaves less than capacity >> STOP_SHIFT bytes is good enough
BRACKET_MIN = 16  # bytes of input between a fit and a misfit below which searching on is in vain

_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ = 0x100  # PyBUF_READ


def memory(address: int, length: int) -> memoryview:
    """A view of the `length` bytes at `address`, valid as long as they are."""
    view: memoryview = _memory(address, length, _READ)
    return view


class SearchedOutput:
    """A compressor for one thread: as much input as fits `capacity` output bytes, as `lz4.FixedOutput`.

    compress  (address, length) → the compressed bytes, whatever their number
    capacity  output bytes of a call at most
    padding   zero bytes that stand before the output, for `padded`
    """

    def __init__(self, compress: Callable[[int, int], bytes], capacity: int, padding: int = 0) -> None:
        self._compress = compress
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
        fits, fits_bytes, self._output = 0, 0, b""
        over, over_bytes = length + 1, 0  # 0: unknown, nothing has been too much
        tried = min(length, guess or int(capacity * FIRST_RATIO))
        while True:
            output = self._compress(address, tried)
            if len(output) <= capacity:
                fits, fits_bytes, self._output = tried, len(output), output
            else:
                over, over_bytes = tried, len(output)
            if fits == length or (fits and capacity - fits_bytes <= near_enough) or over - fits <= BRACKET_MIN:
                return fits, fits_bytes
            tried = _next(fits, fits_bytes, over, over_bytes, capacity - near_enough // 2)

    def padded(self, produced: int, size: int) -> bytes:
        """The last call's `produced` bytes at the end of `size` bytes, zeros before them."""
        if produced != len(self._output) or not produced <= size <= produced + self._padding:
            raise ValueError(f"cannot pad {produced} bytes to {size}")
        return bytes(size - produced) + self._output


def _next(fits: int, fits_bytes: int, over: int, over_bytes: int, target: int) -> int:
    """The length to try between one that fits and one that does not: on the line through both, clear of the ends."""
    if not over_bytes:
        return min(over - 1, max(fits + BRACKET_MIN, target * fits // fits_bytes))
    gap = over - fits
    margin = max(BRACKET_MIN // 2, gap >> 4)
    wanted = fits + (target - fits_bytes) * gap // (over_bytes - fits_bytes)
    return min(over - margin, max(fits + margin, wanted))
