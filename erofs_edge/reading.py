# SPDX-License-Identifier: Apache-2.0
"""Reads that return all the bytes asked for."""

from __future__ import annotations

from erofs_edge.positions import pread


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes from `offset` on; fewer only at the end of the file. A single call may return less, for
    example on a network file system or beyond 2 GiB. Raises OSError."""
    data = pread(fd, length, offset)
    while len(data) < length and (more := pread(fd, length - len(data), offset + len(data))):
        data += more
    return data
