# SPDX-License-Identifier: Apache-2.0
"""Reading to the last byte."""

from __future__ import annotations

from erofs_edge.positions import pread


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset` on, fewer only where the file ends: one call may give less, as on a network file
    system, or of more than 2 GiB. Raises OSError."""
    data = pread(fd, length, offset)
    while len(data) < length and (more := pread(fd, length - len(data), offset + len(data))):
        data += more
    return data
