# SPDX-License-Identifier: Apache-2.0
"""The bytes of an image file: mapped, and every read bounded."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from struct import Struct
from typing import Any

from erofs_edge.errors import ErofsEdgeError, ErofsFormatError


def broken(message: str, offset: int) -> ErofsFormatError:
    """The error for bytes at `offset` of the image that break the format."""
    return ErofsFormatError(message, where=f"offset {offset:#x}")


class Backing:
    """Bytes [0, `end`) of a file or block device, mapped read-only.

    `end` starts as the file's size and is lowered to the size that the superblock tells, so that nothing inside the
    image can point at what was appended to it (a hash tree). Reads are safe from several threads.
    """

    def __init__(self, path: Path) -> None:
        """Raises ErofsEdgeError where the file cannot be opened, ErofsFormatError where it is empty."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ErofsEdgeError(f"cannot open the image: {error.strerror}", where=str(path)) from error
        try:
            self.size = os.lseek(fd, 0, os.SEEK_END)
            if not self.size:
                raise broken("the image is empty", 0)
            self._map = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        except OSError as error:
            raise ErofsEdgeError(f"cannot map the image: {error.strerror}", where=str(path)) from error
        finally:
            os.close(fd)
        self.end = self.size

    def close(self) -> None:
        self._map.close()

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes at `offset`. Raises ErofsFormatError where they are not all inside the image."""
        if offset < 0 or length < 0 or offset + length > self.end:
            raise broken(f"{what} ({length} bytes) lies outside the image of {self.end} bytes", offset)
        return self._map[offset : offset + length]

    def unpack(self, struct: Struct, offset: int, what: str) -> tuple[Any, ...]:
        """The fields of a structure at `offset`, bounded as in `read`."""
        if offset < 0 or offset + struct.size > self.end:
            raise broken(f"{what} ({struct.size} bytes) lies outside the image of {self.end} bytes", offset)
        return struct.unpack_from(self._map, offset)
