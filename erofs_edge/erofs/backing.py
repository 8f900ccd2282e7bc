# SPDX-License-Identifier: Apache-2.0
"""The bytes of an image: mapped, and every read bounded.

One address space holds all of them. The image itself lies at 0, extra device k at ``k << DEVICE_BITS``, and the
content of the metabox inode at METABOX; on-disk addresses have 64 bits, so nothing in an image can forge the others.
"""

from __future__ import annotations

import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.positions import READ

DEVICE_BITS = 72
METABOX = 1 << 96


def place(offset: int) -> str:
    """An address as messages name it: the offset, and in what where that is not the image file."""
    if offset >= METABOX:
        return f"offset {offset - METABOX:#x} of the metabox"
    if offset >> DEVICE_BITS:
        return f"offset {offset & (1 << DEVICE_BITS) - 1:#x} of device {offset >> DEVICE_BITS}"
    return f"offset {offset:#x}"


def broken(message: str, offset: int) -> ErofsFormatError:
    """The error for bytes at `offset` of the image that break the format."""
    return ErofsFormatError(message, where=place(offset))


class Window(NamedTuple):
    """Addresses [start, end) that `read(offset from start, length)` serves; `at` is their address of their own."""

    start: int
    end: int
    read: Callable[[int, int], bytes]
    at: int


class Backing:
    """Bytes [0, `end`) of a file or block device from byte `offset` of it on, mapped read-only, and the windows
    attached to it.

    `end` starts as the file's size and is lowered to the size that the superblock tells, so that nothing inside the
    image can point at what was appended to it (a hash tree). Reads are safe from several threads.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Raises ErofsEdgeError where the file cannot be opened, ErofsFormatError where it is empty, UsageError for a
        pipe, and an offset at which files cannot be mapped."""
        if offset % mmap.ALLOCATIONGRANULARITY:
            pages = f"here images begin at multiples of {mmap.ALLOCATIONGRANULARITY} bytes"
            raise UsageError(f"an image cannot be read from byte {offset} on", where=str(path), hint=pages)
        try:
            fd = os.open(path, READ | getattr(os, "O_NONBLOCK", 0))  # a pipe is refused, not waited for
        except OSError as error:
            raise ErofsEdgeError(f"cannot open the image: {error.strerror}", where=str(path)) from error
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise ErofsEdgeError("this is a folder, not an image", where=str(path))
            if stat.S_ISFIFO(mode):
                hint = "save its output to a file first"
                raise UsageError("a pipe, not an image", where=str(path), hint=hint)
            self.size = max(os.lseek(fd, 0, os.SEEK_END) - offset, 0)
            if not self.size:
                raise broken("the file ends before the image" if offset else "the image is empty", 0)
            self._map = mmap.mmap(fd, self.size, access=mmap.ACCESS_READ, offset=offset)
        except OSError as error:
            raise ErofsEdgeError(f"cannot map the image: {error.strerror}", where=str(path)) from error
        finally:
            os.close(fd)
        self.end = self.size
        self._starts: list[int] = []
        self._windows: list[Window] = []

    def attach(self, window: Window) -> None:
        """Make a window readable; windows do not overlap. There may be 65535 devices, hence the order."""
        at = bisect_right(self._starts, window.start)
        self._starts.insert(at, window.start)
        self._windows.insert(at, window)

    def close(self) -> None:
        self._map.close()

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes at `offset`. Raises ErofsFormatError where they are not all inside the image."""
        if offset >= 0 and length >= 0 and offset + length <= self.end:
            return self._map[offset : offset + length]
        window = self._window(offset)
        if window is None or length < 0 or offset + length > window.end:
            raise broken(f"{what} ({length} bytes) lies outside the image of {self.end} bytes", offset)
        data = window.read(offset - window.start, length)
        if len(data) != length:
            raise broken(f"{what} ({length} bytes) is cut off", offset)
        return data

    def unpack(self, struct: Struct, offset: int, what: str) -> tuple[Any, ...]:
        """The fields of a structure at `offset`, bounded as in `read`."""
        if offset >= 0 and offset + struct.size <= self.end:
            return struct.unpack_from(self._map, offset)
        return struct.unpack(self.read(offset, struct.size, what))

    def beyond(self, offset: int, length: int) -> bytes:
        """Bytes of the file itself, also behind `end`: extra devices may be concatenated there."""
        return self._map[offset : offset + length]

    def holds(self, offset: int, length: int) -> bool:
        """True where these bytes can be read."""
        return offset >= 0 and offset + length <= self.end_of(offset)

    def end_of(self, offset: int) -> int:
        """Where the readable bytes that start before or at `offset` end; 0 where nothing is there."""
        if offset < self.end:
            return self.end
        window = self._window(offset)
        return window.end if window is not None else 0

    def resolve(self, address: int) -> int:
        """The address of data: an address on an extra device where that device is mapped there."""
        if address < self.end or not self._windows:
            return address
        window = self._window(address)
        return address - window.start + window.at if window is not None else address

    def _window(self, offset: int) -> Window | None:
        at = bisect_right(self._starts, offset) - 1
        return self._windows[at] if at >= 0 and offset < self._windows[at].end else None
