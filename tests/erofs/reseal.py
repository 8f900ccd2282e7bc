# SPDX-License-Identifier: Apache-2.0
"""The superblock checksum of an image after a few bytes changed, without reading the rest again.

A CRC is linear: the effect of a changed byte depends only on the byte and its position.
"""

from __future__ import annotations

from collections.abc import Iterable

from erofs_edge.erofs import ondisk

_FIELD = range(ondisk.SUPER_OFFSET + 4, ondisk.SUPER_OFFSET + 8)  # counts as zeros


class Checksum:
    """The checksum of `data`, an image with blocks of 2**`blkszbits` bytes, and of changed versions of it."""

    def __init__(self, data: bytes, blkszbits: int) -> None:
        size = 1 << blkszbits
        self._data = data
        self._end = max(size, ondisk.SUPER_OFFSET + min(size, ondisk.SUPER_OFFSET))
        self._crc = ondisk.super_checksum(data, blkszbits)
        parts = [ondisk.crc32c(bytes([1 << bit]), 0) for bit in range(8)]
        self._parts = [parts]  # by the distance from the end: what each bit of a byte adds
        for _ in range(self._end - ondisk.SUPER_OFFSET - 1):
            parts = [ondisk.crc32c(b"\0", part) for part in parts]
            self._parts.append(parts)

    def after(self, image: bytes | bytearray, changed: Iterable[int]) -> int:
        """Return the checksum of `image`, which differs from the data at most at these offsets."""
        crc = self._crc
        for at in set(changed):
            difference = image[at] ^ self._data[at]
            if difference and ondisk.SUPER_OFFSET <= at < self._end and at not in _FIELD:
                for bit, part in enumerate(self._parts[self._end - 1 - at]):
                    if difference >> bit & 1:
                        crc ^= part
        return crc
