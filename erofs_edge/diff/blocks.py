# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a new image differ from those at the same place in the old one."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

_SLICE = 1 << 20  # bytes, a multiple of every block size
_WORD = 8  # bytes that are compared at once


class Blocks:
    """The blocks of two images, compared in place; what the new one has beyond the end of the old one counts as
    different.

    count  number of blocks in the new image; total  number of those that differ
    """

    def __init__(self, old: Path, new: Path, old_size: int, new_size: int, block_size: int) -> None:
        """Sizes in bytes, whole blocks."""
        self.block_size = block_size
        self.count = new_size // block_size
        flags = np.ones(self.count, dtype=np.int64)
        both = min(old_size, new_size) // block_size * block_size
        # both are read into the same two buffers, which fit a processor's cache: mapped files would cost a fault per
        # page
        buffers = np.empty((2, _SLICE // _WORD), dtype=np.uint64)
        words = np.empty(_SLICE // _WORD, dtype=np.bool_)
        with old.open("rb", buffering=0) as one, new.open("rb", buffering=0) as other:
            for at in range(0, both, _SLICE):
                size = min(_SLICE, both - at)
                for file, buffer in ((one, buffers[0]), (other, buffers[1])):
                    _fill(file, memoryview(buffer).cast("B")[:size])
                count = size // _WORD
                np.not_equal(buffers[0, :count], buffers[1, :count], out=words[:count])
                unequal = words[:count].reshape(-1, block_size // _WORD).view(_lanes(block_size))
                flags[at // block_size : (at + size) // block_size] = np.bitwise_or.reduce(unequal, axis=1) != 0
        self._sums = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(flags)))
        self.total = int(self._sums[-1])

    def differing(self, address: int, size: int) -> int:
        """Number of differing blocks among those of bytes [address, address + size); 0 outside the image."""
        first, end = address // self.block_size, -(-(address + size) // self.block_size)
        if first >= self.count or size <= 0:
            return 0
        return int(self._sums[min(end, self.count)] - self._sums[first])


def _fill(file: FileIO, buffer: memoryview) -> None:
    """Read until the buffer is full; if a file has become shorter, the rest counts as zeros."""
    while buffer:
        count = file.readinto(buffer)
        if not count:
            buffer[:] = bytes(len(buffer))
            return
        buffer = buffer[count:]


def _lanes(block_size: int) -> type[np.unsignedinteger[Any]]:
    """The widest type in which the flags of a block's words can be read: blocks have at least 512 bytes."""
    return np.uint64 if block_size % (8 * _WORD) == 0 else np.uint8
