# SPDX-License-Identifier: Apache-2.0
"""A file of an image as a Python file object."""

from __future__ import annotations

import io

from erofs_edge.erofs import ondisk
from erofs_edge.tree import Content


class ImageFile(io.RawIOBase):
    """A regular file of an image as a seekable raw file object, usable as long as the image is open."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}
        if whence not in bases:
            raise ValueError(f"unknown whence {whence}")
        if bases[whence] + offset < 0:
            raise ValueError("negative seek position")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._check_open()
        data = self._content.read(self._position, min(len(buffer), ondisk.EXTENT_MAX))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        self._check_open()
        pieces = []
        while data := self._content.read(self._position, ondisk.EXTENT_MAX):
            pieces.append(data)
            self._position += len(data)
        return b"".join(pieces)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
