# SPDX-License-Identifier: Apache-2.0
"""Read small files that are in the page cache without releasing the GIL.

Opening, reading and closing a file of a few kilobytes takes microseconds, but each of Python's own calls releases the
GIL, and getting it back from a busy thread takes a hundred times as long. These calls keep it as long as nothing
blocks: the kernel refuses reads that would block (RWF_NOWAIT, Linux 4.14), and those are repeated in the usual way. If
the C library has no such call, nothing is read here.

In a process without other threads, nobody competes for the GIL, and Python's own calls take two thirds of the time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache

from erofs_edge.codec.lz4 import address_of
from erofs_edge.positions import READ

SMALL = 128 << 10  # bytes; copying that many takes less time than reacquiring the GIL
_NOWAIT = 0x8  # RWF_NOWAIT, linux/fs.h
# a path that is no longer a regular file must not block either
_FLAGS = READ | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)

Read = Callable[[bytes, int], bytes | None]


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Local(threading.local):
    """A thread's two read buffers: one for the expected bytes, and one byte more to detect longer files."""

    def __init__(self) -> None:
        self.vectors = (_Vector * 2)()
        self.first = self.vectors[0]
        self.more = ctypes.create_string_buffer(1)
        self.vectors[1] = _Vector(ctypes.addressof(self.more), 1)
        self.address = ctypes.addressof(self.vectors)


_is_alone = False


def be_alone() -> None:
    """Declare that this process has one thread from now on, or others that rarely need the GIL."""
    global _is_alone  # noqa: PLW0603 - it is a fact about the process
    _is_alone = True


def reader() -> Read | None:
    """Return a function (path, size of at most SMALL bytes) → the whole file, or None if it has a different size or
    cannot be read at once. Then it must be read in the usual way, which also reports what is wrong. Without such a
    call, return None."""
    return read_alone if _is_alone else _reader()


def read_alone(path: bytes, size: int) -> bytes | None:
    """Like what `reader` returns, with Python's own calls."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        data = os.read(fd, size + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return data if len(data) == size else None


@cache
def _reader() -> Read | None:
    try:
        library = ctypes.PyDLL(None)
        open_file, read, close = library.open, library.preadv64v2, library.close
    except (OSError, AttributeError, TypeError):
        return None
    open_file.argtypes, open_file.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_int
    close.argtypes, close.restype = (ctypes.c_int,), ctypes.c_int
    arguments = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    read.argtypes, read.restype = arguments, ctypes.c_ssize_t
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
        ("PyBytes_FromStringAndSize", ctypes.pythonapi)
    )
    local = _Local()

    def read_at_once(path: bytes, size: int) -> bytes | None:
        fd = open_file(path, _FLAGS)
        if fd < 0:
            return None
        try:
            data: bytes = new(None, size)  # nobody else has seen this object yet, so it may be modified
            local.first.base, local.first.length = address_of(data), size
            got = read(fd, local.address, 2, 0, _NOWAIT)
        finally:
            close(fd)
        return data if got == size else None

    return read_at_once
