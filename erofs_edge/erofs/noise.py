# SPDX-License-Identifier: Apache-2.0
"""Noise: detect incompressible content in less time than a slow codec takes to find out.

This determines the bytes of images: raise cut_rules.RULES with every change.

LZ4HC is skipped where LZ4's fast form finds no repeated strings at one position in six (`Glances`): that takes a tenth
of the time, and of what would save a hundredth it misses next to nothing.

The other codecs need matches as long as that to gain from them, and encode bytes by their frequency: they are skipped
where hardly any strings occur twice and these frequencies are those of noise, counting each byte after the eight kinds
of bytes that LZMA distinguishes (``lc`` = 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from erofs_edge.codec.lz4 import Repeats, literals, literals_in
from erofs_edge.codec.search import memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from erofs_edge.erofs.meter import Meter

GLANCE_PCLUSTER = 16 << 10  # bytes of the smallest pcluster with which LZ4HC takes much longer than a glance
BEYOND_SHIFT, BEYOND_MIN = 4, 1024  # how far to look beyond a pcluster: its bytes >> this, and at least this many bytes
# what a few bytes must save to take a block less: bytes >> this, and at least this many bytes
SPARE_SHIFT, SPARE_MIN = 4, 256

WINDOW = 64 << 10  # bytes examined at a time
STRING = 4  # bytes of LZ4's shortest match
STRINGS_SHIFT = 9  # strings in n bytes that may occur twice: n >> this
CONTEXT_SHIFT, VALUES = 5, 256  # LZMA's lc = 3: the upper three bits of the previous byte
# chi-squared of 8 tables of 256 values: 2040 on average, with a standard deviation of 64
SKEW_MAX = 2040 + 6 * 64
# codec: (level from which it is slower than this check, bytes without gain before the check is made, so that importing
# numpy, 70 ms, pays off)
SLOW = {"deflate": (10, 512 << 10), "zstd": (13, 512 << 10), "lzma": (0, 128 << 10)}


Filler = Callable[[int, int, int], tuple[int, int]]
"""makes a pcluster: (address, bytes left, bytes consumed by the previous call) → (bytes consumed, bytes produced)"""


def glances_for(codec: str, pcluster: int, block_size: int, meter: Meter | None) -> Glances | None:
    """Return Glances if they are much faster than the codec."""
    is_slow = codec == "lz4hc" and pcluster >= GLANCE_PCLUSTER
    return Glances(pcluster, block_size, meter) if is_slow else None


class Glances:
    """Decide where to skip LZ4HC. For one thread."""

    def __init__(self, pcluster: int, block_size: int, meter: Meter | None = None) -> None:
        """`pcluster` and `block_size` in bytes; `meter` counts this as calls of the codec."""
        self._block_size, self._pcluster = block_size, pcluster
        self._most = literals_in(pcluster)
        self._window = pcluster + max(BEYOND_MIN, pcluster >> BEYOND_SHIFT)
        finds_nothing = Repeats(self._window).finds_nothing
        self._finds_nothing = finds_nothing if meter is None else meter.watch(finds_nothing)

    def before(self, fill: Filler, *, blocks: bool) -> Filler:
        """Wrap `fill`, which is then not called where it would find next to nothing. `blocks`: the last bytes are
        stored in separate blocks, not elsewhere."""

        def look_and_fill(address: int, left: int, last: int) -> tuple[int, int]:
            found = self._literals(address, left, blocks=blocks)
            # do not let it find out once more that this is compressible
            return (found, literals(found)) if found else fill(address, left, last * (last > self._pcluster))

        return look_and_fill

    def _literals(self, address: int, left: int, *, blocks: bool) -> int:
        """Return how many bytes a pcluster takes if nothing is found in them; 0 if there may be something."""
        if left <= self._most:
            spare = left - (left - 1) // self._block_size * self._block_size
            worth = blocks and spare >= max(SPARE_MIN, left >> SPARE_SHIFT)
            return left if worth and self._finds_nothing(address, left) else 0
        return self._most if left >= self._window and self._finds_nothing(address, self._window) else 0


class Noise:
    """Judges what follows incompressible content, for codecs other than LZ4HC. `patience`: bytes of such content after
    which it is asked; None if the codec itself is as fast."""

    def __init__(self, codec: str, level: int | None, pcluster: int) -> None:
        least, patience = SLOW.get(codec, (1 << 30, 0))
        self.patience = patience if (level or 0) >= least else None
        self._pcluster = pcluster
        self._window = max(pcluster, WINDOW)

    def runs(self, address: int, left: int, run: int) -> int:
        """Return how many raw runs of `run` bytes, of the `left` ones at an address, can skip the codec."""
        done, at_once = 0, (self._window - self._pcluster) // run + 1
        while left - done * run > self._window and self._has_noise(address + done * run):
            done += at_once
        return done

    def _has_noise(self, address: int) -> bool:
        return is_noise(address, self._window, self._pcluster)


def is_noise(address: int, length: int, pcluster: int) -> bool:
    """Whether no pcluster of this content can gain anything."""
    for start in range(0, length, WINDOW):
        end = min(length, start + WINDOW)
        near = min(length, end + WINDOW * (length > WINDOW))
        if _strings_twice(address + start, near - start) > min(pcluster, WINDOW) >> STRINGS_SHIFT:
            return False
        if end - start == WINDOW and _skew(address + start, WINDOW) > SKEW_MAX:
            return False
    return True


def _strings_twice(address: int, length: int) -> int:
    """Count 4-byte strings, at any offset, that occurred before."""
    import numpy as np

    data = memory(address, length)
    count = (length - STRING + 1) // STRING
    strings = np.concatenate([np.frombuffer(data, "<u4", count, place) for place in range(STRING)])
    strings.sort()
    return int(np.count_nonzero(strings[1:] == strings[:-1]))


def _skew(address: int, length: int) -> float:
    """Return chi-squared of the bytes, against all values being equally frequent."""
    import numpy as np

    values: NDArray[np.uint8] = np.frombuffer(memory(address, length), np.uint8)
    contexts = values[:-1].astype(np.uint16)
    contexts >>= CONTEXT_SHIFT
    contexts <<= 8
    contexts |= values[1:]
    tables = np.bincount(contexts, minlength=VALUES << 8 - CONTEXT_SHIFT).reshape(-1, VALUES)
    expected = tables.sum(axis=1, keepdims=True) / VALUES
    return float((((tables - expected) ** 2) / np.maximum(expected, 1)).sum())
