# SPDX-License-Identifier: Apache-2.0
"""The bytes of an image, mapped into memory, with every read bounded.

A single address space covers everything: the image itself at 0, extra device k at ``k << DEVICE_BITS``, and the content
of the metabox inode at METABOX. On-disk addresses have 64 bits, so nothing in an image can forge the other ranges.
"""

from __future__ import annotations

import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.positions import READ

DEVICE_BITS = 72
METABOX = 1 << 96


def place(offset: int) -> str:
    """Format an address for messages: the offset, and what it is in if that is not the image file."""
    if offset >= METABOX:
        return f"offset {offset - METABOX:#x} of the metabox"
    if offset >> DEVICE_BITS:
        return f"offset {offset & (1 << DEVICE_BITS) - 1:#x} of device {offset >> DEVICE_BITS}"
    return f"offset {offset:#x}"


def broken(message: str, offset: int) -> ErofsFormatError:
    """Return the error for bytes at `offset` that violate the format."""
    return ErofsFormatError(message, where=place(offset))


class Window(NamedTuple):
    """Addresses [start, end) served by `read(offset from start, length)`; `at` is their own address."""

    start: int
    end: int
    read: Callable[[int, int], bytes]
    at: int


class Backing:
    """Bytes [0, `end`) of a file or block device from its byte `offset` on, mapped read-only, plus attached windows.

    `end` starts as the file's size and is lowered to the size in the superblock, so that nothing inside the image can
    point to data appended to it (such as a hash tree). Reads are safe from several threads.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Raises ErofsEdgeError if the file cannot be opened, ErofsFormatError if it is empty, UsageError for a pipe or
        an offset at which files cannot be mapped."""
        if offset < 0 or offset % mmap.ALLOCATIONGRANULARITY:
            pages = f"here images begin at multiples of {mmap.ALLOCATIONGRANULARITY} bytes"
            raise UsageError(f"an image cannot be read from byte {offset} on", where=str(path), hint=pages)
        try:
            fd = os.open(path, READ | getattr(os, "O_NONBLOCK", 0))  # so that a pipe is refused instead of blocking
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
        self._view = memoryview(self._map)
        self.end = self.size
        self._starts: list[int] = []
        self._windows: list[Window] = []

    def attach(self, window: Window) -> None:
        """Make a window readable. Windows do not overlap; they are kept sorted, since there may be 65535 devices."""
        at = bisect_right(self._starts, window.start)
        self._starts.insert(at, window.start)
        self._windows.insert(at, window)

    def close(self) -> None:
        self._view.release()
        with suppress(BufferError):  # lent bytes of work that failed: the last of them takes the map with it
            self._map.close()

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return exactly `length` bytes at `offset`. Raises ErofsFormatError if they are not all inside the image."""
        if offset >= 0 and length >= 0 and offset + length <= self.end:
            return self._map[offset : offset + length]
        window = self._window(offset)
        if window is None or length < 0 or offset + length > window.end:
            raise broken(f"{what} ({length} bytes) lies outside the image of {self.end} bytes", offset)
        data = window.read(offset - window.start, length)
        if len(data) != length:
            raise broken(f"{what} ({length} bytes) is cut off", offset)
        return data

    def lend(self, offset: int, length: int, what: str) -> bytes | memoryview:
        """Like `read`, but without a copy where possible. What is returned must not be in use after `close`."""
        if offset >= 0 and length >= 0 and offset + length <= self.end:
            return self._view[offset : offset + length]
        return self.read(offset, length, what)

    def unpack(self, struct: Struct, offset: int, what: str) -> tuple[Any, ...]:
        """Return the fields of a structure at `offset`, bounded as in `read`."""
        if offset >= 0 and offset + struct.size <= self.end:
            return struct.unpack_from(self._map, offset)
        return struct.unpack(self.read(offset, struct.size, what))

    def beyond(self, offset: int, length: int) -> bytes:
        """Return bytes of the file itself, even after `end`: extra devices may be concatenated there."""
        return self._map[offset : offset + length]

    def holds(self, offset: int, length: int) -> bool:
        """Whether these bytes can be read."""
        return offset >= 0 and offset + length <= self.end_of(offset)

    def end_of(self, offset: int) -> int:
        """Return where the readable bytes that start at or before `offset` end; 0 if there are none."""
        if offset < self.end:
            return self.end
        window = self._window(offset)
        return window.end if window is not None else 0

    def resolve(self, address: int) -> int:
        """Resolve the address of data: if an extra device is mapped there, return the address on that device."""
        if address < self.end or not self._windows:
            return address
        window = self._window(address)
        return address - window.start + window.at if window is not None else address

    def _window(self, offset: int) -> Window | None:
        at = bisect_right(self._starts, offset) - 1
        return self._windows[at] if at >= 0 and offset < self._windows[at].end else None
