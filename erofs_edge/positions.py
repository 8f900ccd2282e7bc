# SPDX-License-Identifier: Apache-2.0
"""Binary file access at a given position, also on systems without calls for that (Windows).

There, each call moves the file's own position and restores it; only one such call runs in the process at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

T = TypeVar("T")
Chunk = bytes | bytearray | memoryview

BINARY: int = getattr(os, "O_BINARY", 0)
"""flag for `os.open`: without it, Windows converts line endings"""
READ = os.O_RDONLY | BINARY
"""flags for `os.open`; child programs do not inherit files that Python opens"""
READ_WRITE = os.O_RDWR | BINARY

_moving = Lock()


def _moved(fd: int, offset: int, call: Callable[[], T]) -> T:
    with _moving:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, offset, os.SEEK_SET)
        try:
            return call()
        finally:
            os.lseek(fd, before, os.SEEK_SET)


def _pread(fd: int, length: int, offset: int) -> bytes:
    return _moved(fd, offset, lambda: os.read(fd, length))


def _preadv(fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
    first = memoryview(buffers[0]).cast("B")
    data = _pread(fd, len(first), offset)
    first[: len(data)] = data
    return len(data)


def _pwrite(fd: int, data: Chunk, offset: int) -> int:
    return _moved(fd, offset, lambda: os.write(fd, data))


def _pwritev(fd: int, buffers: Sequence[Chunk], offset: int) -> int:
    return _pwrite(fd, b"".join(buffers), offset)


pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _pread)
preadv: Callable[[int, Sequence[bytearray | memoryview], int], int] = getattr(os, "preadv", _preadv)
pwrite: Callable[[int, Chunk, int], int] = getattr(os, "pwrite", _pwrite)
pwritev: Callable[[int, Sequence[Chunk], int], int] = getattr(os, "pwritev", _pwritev)
