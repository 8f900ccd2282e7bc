# SPDX-License-Identifier: Apache-2.0
"""Noise: content that no codec makes smaller, told in less time than a slow one needs to find that out.

What these say decides the bytes of images: raise cut_rules.RULES with a change.

LZ4HC is not asked where LZ4's fast form finds no strings that were there before, at one place in six (`Glances`): that
takes a tenth of the time, and of what saves a hundredth it misses next to nothing.

The other codecs need matches as long to gain by them, and code bytes by how often they are used: they are not asked
where hardly any strings are there twice, and these frequencies are those of noise, each byte's behind bytes of the
eight kinds that LZMA tells apart (``lc`` = 3).
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

GLANCE_PCLUSTER = 16 << 10  # bytes of the least pcluster with which LZ4HC takes much longer than a glance
BEYOND_SHIFT, BEYOND_MIN = 4, 1024  # of a pcluster's bytes, and bytes, that are looked at behind it
# what must be saved of a few bytes before they take a block less: bytes >> this, and bytes
SPARE_SHIFT, SPARE_MIN = 4, 256

WINDOW = 64 << 10  # bytes that are looked at together
STRING = 4  # bytes of LZ4's shortest match
STRINGS_SHIFT = 9  # strings in n bytes that may be there twice: n >> this
CONTEXT_SHIFT, VALUES = 5, 256  # LZMA's lc = 3: the upper three bits of the byte before
# chi-squared of 8 tables of 256 values: 2040 on average, with a standard deviation of 64
SKEW_MAX = 2040 + 6 * 64
# codec: (level from which on it is slower than looking, bytes without gain before that is done, so that loading numpy,
# 70 ms, pays)
SLOW = {"deflate": (10, 512 << 10), "zstd": (13, 512 << 10), "lzma": (0, 128 << 10)}


Filler = Callable[[int, int, int], tuple[int, int]]
"""makes a pcluster: (address, bytes left, bytes that the call before consumed) → (bytes consumed, bytes produced)"""


def glances_for(codec: str, pcluster: int, block_size: int, meter: Meter | None) -> Glances | None:
    """Where these are much faster than the codec."""
    is_slow = codec == "lz4hc" and pcluster >= GLANCE_PCLUSTER
    return Glances(pcluster, block_size, meter) if is_slow else None


class Glances:
    """Tell where LZ4HC is not asked. For one thread."""

    def __init__(self, pcluster: int, block_size: int, meter: Meter | None = None) -> None:
        """`pcluster` and `block_size` in bytes; `meter` counts this as calls of the codec."""
        self._block_size, self._pcluster = block_size, pcluster
        self._most = literals_in(pcluster)
        self._window = pcluster + max(BEYOND_MIN, pcluster >> BEYOND_SHIFT)
        finds_nothing = Repeats(self._window).finds_nothing
        self._finds_nothing = finds_nothing if meter is None else meter.watch(finds_nothing)

    def before(self, fill: Filler, *, blocks: bool) -> Filler:
        """The same as `fill`, which is not called where it would find next to nothing. `blocks`: the last bytes are to
        lie in blocks of their own, and not elsewhere."""

        def look_and_fill(address: int, left: int, last: int) -> tuple[int, int]:
            found = self._literals(address, left, blocks=blocks)
            # that there is something in it need not be found out again
            return (found, literals(found)) if found else fill(address, left, last * (last > self._pcluster))

        return look_and_fill

    def _literals(self, address: int, left: int, *, blocks: bool) -> int:
        """How many bytes a pcluster takes of those in which nothing is found; 0: there may be something in them."""
        if left <= self._most:
            spare = left - (left - 1) // self._block_size * self._block_size
            worth = blocks and spare >= max(SPARE_MIN, left >> SPARE_SHIFT)
            return left if worth and self._finds_nothing(address, left) else 0
        return self._most if left >= self._window and self._finds_nothing(address, self._window) else 0


class Noise:
    """Judges what follows content without gain, for other codecs than LZ4HC. `patience`: bytes of that after which it
    is asked; None where the codec itself is as fast."""

    def __init__(self, codec: str, level: int | None, pcluster: int) -> None:
        least, patience = SLOW.get(codec, (1 << 30, 0))
        self.patience = patience if (level or 0) >= least else None
        self._pcluster = pcluster
        self._window = max(pcluster, WINDOW)

    def runs(self, address: int, left: int, run: int) -> int:
        """How many raw runs of `run` bytes, of the `left` ones at an address, the codec need not be asked about."""
        done, at_once = 0, (self._window - self._pcluster) // run + 1
        while left - done * run > self._window and self._has_noise(address + done * run):
            done += at_once
        return done

    def _has_noise(self, address: int) -> bool:
        return is_noise(address, self._window, self._pcluster)


def is_noise(address: int, length: int, pcluster: int) -> bool:
    """Whether no pcluster of what lies there can gain."""
    for start in range(0, length, WINDOW):
        end = min(length, start + WINDOW)
        near = min(length, end + WINDOW * (length > WINDOW))
        if _strings_twice(address + start, near - start) > min(pcluster, WINDOW) >> STRINGS_SHIFT:
            return False
        if end - start == WINDOW and _skew(address + start, WINDOW) > SKEW_MAX:
            return False
    return True


def _strings_twice(address: int, length: int) -> int:
    """Strings of 4 bytes, at whatever place, that were there before."""
    import numpy as np

    data = memory(address, length)
    count = (length - STRING + 1) // STRING
    strings = np.concatenate([np.frombuffer(data, "<u4", count, place) for place in range(STRING)])
    strings.sort()
    return int(np.count_nonzero(strings[1:] == strings[:-1]))


def _skew(address: int, length: int) -> float:
    """Chi-squared of the bytes, against all values being as frequent."""
    import numpy as np

    values: NDArray[np.uint8] = np.frombuffer(memory(address, length), np.uint8)
    contexts = values[:-1].astype(np.uint16)
    contexts >>= CONTEXT_SHIFT
    contexts <<= 8
    contexts |= values[1:]
    tables = np.bincount(contexts, minlength=VALUES << 8 - CONTEXT_SHIFT).reshape(-1, VALUES)
    expected = tables.sum(axis=1, keepdims=True) / VALUES
    return float((((tables - expected) ** 2) / np.maximum(expected, 1)).sum())
