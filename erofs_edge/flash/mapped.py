# SPDX-License-Identifier: Apache-2.0
"""Two files of this machine, compared where the kernel has them in memory, without copying either.

Both are mapped and the C library compares them: two thirds of the time that reading both takes. A file that somebody
cuts short meanwhile, or a medium that fails, ends the process that looks (SIGBUS). So a child does it, and what it does
not tell is for its parent to find out by reading. It tells nothing but what it has seen: there is no other proof.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import IO, NamedTuple

from erofs_edge.erofs.processes import end_with_parent
from erofs_edge.flash.target import BLOCK
from erofs_edge.threads import in_order

PIECE = 256 << 10  # bytes among which blocks are looked at one by one if they differ
SAMPLE = 1 << 20  # bytes from one look at whether the kernel has a file to the next
PR_SET_DUMPABLE = 4  # linux/prctl.h

Range = tuple[int, int]
_COUNT = Struct("<I")
_RANGE = Struct("<QQ")


class Pair(NamedTuple):
    """Two open files, by their descriptors: byte X of `target` ought to be byte X - `shift` of `image`."""

    target: int
    image: int
    shift: int


def compared(pair: Pair, shares: Sequence[Range], threads: int) -> Generator[list[Range], None, None]:
    """For each of these ranges of the target, in order, the blocks that differ, as (start, end); so many of them as a
    forked child could look at, by so many threads. The child ends with the iterator.

    Only for a process without other threads.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        os.close(reading)
        _tell(parent, pair, shares, threads, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        try:
            for _ in shares:
                found = _told(pipe)
                if found is None:
                    return
                yield found
        finally:
            os.kill(child, signal.SIGKILL)  # it may have ended by itself: it is waited for only now
            os.waitpid(child, 0)


def _told(pipe: IO[bytes]) -> list[Range] | None:
    """What the child says about one share; None where it says nothing any more."""
    head = pipe.read(_COUNT.size)
    if len(head) < _COUNT.size:
        return None
    size = _COUNT.unpack(head)[0] * _RANGE.size
    raw = pipe.read(size)
    return list(_RANGE.iter_unpack(raw)) if len(raw) == size else None


def _tell(parent: int, pair: Pair, shares: Sequence[Range], threads: int, pipe: int) -> None:
    """In the child, which ends here, whatever happens, without putting anything of its parent's in order."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent too, which ends us
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        end_with_parent(parent)
        files = _Files(pair)
        for _, found in in_order(files.differences, shares, threads):
            view = memoryview(_COUNT.pack(len(found)) + b"".join(_RANGE.pack(*one) for one in found))
            while view:
                view = view[os.write(pipe, view) :]
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


class _Files:
    """The C library's view of both files."""

    def __init__(self, pair: Pair) -> None:
        """Raises AttributeError, OSError where there is no such library."""
        import ctypes  # takes milliseconds to load: the parent has other things to do

        self._pair = pair
        self._sizes = {fd: os.fstat(fd).st_size for fd in (pair.target, pair.image)}
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a file that was cut short is worth no core
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        number = ctypes.c_int
        self._mmap = getattr(libc, "mmap64", libc.mmap)  # where offsets have 32 bits otherwise
        self._mmap.restype, self._mmap.argtypes = pointer, (pointer, size, number, number, number, ctypes.c_int64)
        self._munmap, self._memcmp = libc.munmap, libc.memcmp
        self._munmap.argtypes, self._memcmp.argtypes = (pointer, size), (pointer, pointer, size)
        self._failed = ctypes.c_void_p(-1).value

    def differences(self, share: Range) -> list[Range]:
        """The blocks that differ. Raises OSError, EOFError where that cannot be seen so."""
        (start, end), pair = share, self._pair
        with (
            self._at(pair.target, start, end - start) as there,
            self._at(pair.image, start - pair.shift, end - start) as here,
        ):
            return list(self._differing(there, here, start, end - start))

    def _differing(self, there: int, here: int, start: int, length: int) -> Iterator[Range]:
        """Down to blocks, where larger pieces differ."""
        if not self._memcmp(there, here, length):
            return
        if length <= BLOCK:
            yield start, start + length
            return
        step = PIECE if length > PIECE else BLOCK
        for at in range(0, length, step):
            yield from self._differing(there + at, here + at, start + at, min(step, length - at))

    @contextmanager
    def _at(self, file: int, offset: int, length: int) -> Iterator[int]:
        """The address of these bytes."""
        if offset + length > self._sizes[file]:
            raise EOFError("behind the end there is nothing to map")
        if not _is_there(file, offset, length):
            raise EOFError("to be read first: of what is mapped the kernel fetches little at a time")
        before = offset % mmap.PAGESIZE
        base = self._mmap(None, before + length, mmap.PROT_READ, mmap.MAP_SHARED, file, offset - before)
        if base == self._failed:
            raise OSError("cannot be mapped")
        try:
            yield base + before
        finally:
            self._munmap(base, before + length)


def _is_there(file: int, offset: int, length: int) -> bool:
    """Whether the kernel has these bytes in memory: a byte here and there tells, as a file mostly is or is not. Where
    kernel or C library cannot say, it counts as there."""
    try:
        for place in range(offset, offset + length, SAMPLE):
            os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return True
    return True
