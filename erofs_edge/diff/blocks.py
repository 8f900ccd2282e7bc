# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a new image differ from those at the same place in the old one."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SLICE = 16 << 20


class Blocks:
    """The blocks of two images, compared in place; what the new one has beyond the old one's end differs.

    count  blocks of the new image; total  those that differ
    """

    def __init__(self, old: Path, new: Path, old_size: int, new_size: int, block_size: int) -> None:
        """Sizes in bytes, whole blocks."""
        self.block_size = block_size
        self.count = new_size // block_size
        flags = np.ones(self.count, dtype=np.int64)
        both = min(old_size, new_size) // block_size
        with (
            old.open("rb") as one,
            new.open("rb") as other,
            mmap.mmap(one.fileno(), 0, prot=mmap.PROT_READ) as before,
            mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ) as after,
        ):
            step = _SLICE // block_size
            for first in range(0, both, step):
                count = min(step, both - first)
                start, end = first * block_size, (first + count) * block_size
                _mark(flags[first : first + count], before[start:end], after[start:end])
        self._sums = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(flags)))
        self.total = int(self._sums[-1])

    def differing(self, address: int, size: int) -> int:
        """Blocks that differ among those that hold bytes [address, address + size); outside the image 0."""
        first, end = address // self.block_size, -(-(address + size) // self.block_size)
        if first >= self.count or size <= 0:
            return 0
        return int(self._sums[min(end, self.count)] - self._sums[first])


def _mark(flags: npt.NDArray[np.int64], old: bytes, new: bytes) -> None:
    """Set the flag of each block, of as many equal parts as there are flags, to whether it differs."""
    if old == new:
        flags[:] = 0
        return
    one, other = (np.frombuffer(data, dtype=np.uint64).reshape(len(flags), -1) for data in (old, new))
    flags[:] = (one != other).any(axis=1)
