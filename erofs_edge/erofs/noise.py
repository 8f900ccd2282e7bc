# SPDX-License-Identifier: Apache-2.0
"""Noise: content that no codec makes smaller, told in less time than a slow one needs to find that out.

What these say decides the bytes of images: raise compress.RULES with a change.

Of LZ4 it is a proof. A match of m bytes takes 3 at least, and m - 3 strings of 4 bytes that were there before lie in
it: a block that stands for n bytes has more than n - r, and one byte for about 255 literals, where r is how many such
strings there are in all. The other codecs need matches as long to gain by them, and code bytes by how often they are
used: there these frequencies must be those of noise as well, each byte's behind bytes of the eight kinds that LZMA
tells apart (``lc`` = 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erofs_edge.codec.search import memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW = 64 << 10  # bytes that are looked at together: as far as LZ4's matches reach back
STRING = 4  # bytes of LZ4's shortest match
STRINGS_SHIFT = 9  # strings in n bytes that may be there twice: n >> this, half of what LZ4 adds to noise
CONTEXT_SHIFT, VALUES = 5, 256  # LZMA's lc = 3: the upper three bits of the byte before
# chi-squared of 8 tables of 256 values: 2040 on average, with a standard deviation of 64
SKEW_MAX = 2040 + 6 * 64
# codec: (level from which on it is slower than looking, least pcluster, bytes without gain before that is done, so
# that loading numpy, 70 ms, pays)
SLOW = {
    "lz4hc": (1, 16 << 10, 1 << 20),
    "deflate": (10, 0, 512 << 10),
    "zstd": (13, 0, 512 << 10),
    "lzma": (0, 0, 128 << 10),
}


class Noise:
    """Judges what follows content without gain. `patience`: bytes of that after which it is asked; None where the
    codec itself is as fast."""

    def __init__(self, codec: str, level: int | None, pcluster: int) -> None:
        least, least_pcluster, patience = SLOW.get(codec, (0, 1 << 30, 0))
        self.patience = patience if pcluster >= least_pcluster and (level or 0) >= least else None
        self._pcluster = pcluster
        self._entropy = codec != "lz4hc"
        self._window = max(pcluster, WINDOW)

    def runs(self, address: int, left: int, run: int) -> int:
        """How many raw runs of `run` bytes, of the `left` ones at an address, the codec need not be asked about."""
        done, at_once = 0, (self._window - self._pcluster) // run + 1
        while left - done * run > self._window and self._has_noise(address + done * run):
            done += at_once
        return done

    def _has_noise(self, address: int) -> bool:
        return is_noise(address, self._window, self._pcluster, entropy=self._entropy)


def is_noise(address: int, length: int, pcluster: int, *, entropy: bool) -> bool:
    """Whether no pcluster of what lies there can gain; `entropy`: neither by how often bytes are used."""
    for start in range(0, length, WINDOW):
        end = min(length, start + WINDOW)
        near = min(length, end + WINDOW * (length > WINDOW))
        if _strings_twice(address + start, near - start) > min(pcluster, WINDOW) >> STRINGS_SHIFT:
            return False
        if entropy and end - start == WINDOW and _skew(address + start, WINDOW) > SKEW_MAX:
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
