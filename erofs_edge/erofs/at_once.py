# SPDX-License-Identifier: Apache-2.0
"""Small files that the kernel has in memory, read without giving up the interpreter's lock.

Opening, reading and closing a file of a few kilobytes takes microseconds, and each of Python's own calls gives up the
lock meanwhile; getting it back from a thread that computes takes a hundred times as long. So these calls keep it, as
long as nothing has to be waited for: reads that would have to are refused by the kernel (RWF_NOWAIT, Linux 4.14) and
are then made in the usual way. Where the C library has no such call, nothing is read here.

In a process without other threads nobody else wants the lock, and Python's own calls take two thirds of the time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache

from erofs_edge.codec.lz4 import address_of
from erofs_edge.positions import READ

SMALL = 128 << 10  # bytes: copying that many takes less than getting the lock back
_NOWAIT = 0x8  # RWF_NOWAIT, linux/fs.h
# what is no regular file any more must not be waited for either
_FLAGS = READ | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)

Read = Callable[[bytes, int], bytes | None]


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Local(threading.local):
    """A thread's two places to read to: what is expected, and one byte more, so that longer files are noticed."""

    def __init__(self) -> None:
        self.vectors = (_Vector * 2)()
        self.first = self.vectors[0]
        self.more = ctypes.create_string_buffer(1)
        self.vectors[1] = _Vector(ctypes.addressof(self.more), 1)
        self.address = ctypes.addressof(self.vectors)


_is_alone = False


def be_alone() -> None:
    """This process has one thread from now on, or others that rarely want the interpreter's lock."""
    global _is_alone  # noqa: PLW0603 - it is a fact about the process
    _is_alone = True


def reader() -> Read | None:
    """(path, size of at most SMALL bytes) → the whole file, or None where it has another size or cannot be had at
    once: then it is to be read in the usual way, which also tells what is wrong. None where there is no such call."""
    return read_alone if _is_alone else _reader()


def read_alone(path: bytes, size: int) -> bytes | None:
    """As what `reader` gives, by Python's own calls."""
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
            data: bytes = new(None, size)  # nobody else has seen these bytes yet: they may be set
            local.first.base, local.first.length = address_of(data), size
            got = read(fd, local.address, 2, 0, _NOWAIT)
        finally:
            close(fd)
        return data if got == size else None

    return read_at_once
