# SPDX-License-Identifier: Apache-2.0
"""Targets on this machine: a file or a block device."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.target import LOOKING, Identity, PlainTarget
from erofs_edge.reading import read_exactly
from erofs_edge.writing import give_name, write_exactly

if TYPE_CHECKING:
    import mmap

ZEROS = bytes(1 << 20)
DIRECT_ALIGN = 4096  # bytes: alignment of offset, length and memory for direct reads
LARGEST_FOLIO = os.sysconf("SC_PAGESIZE") ** 2 // 8
"""largest piece of a file, in bytes, that the kernel keeps in its page cache as one: what a table of pages with
eight-byte entries maps (Linux include/linux/pagemap.h, MAX_PAGECACHE_ORDER). A piece is dropped whole or not at all."""

# Linux include/uapi/linux/fs.h
_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
_BLKZEROOUT = 0x127F


class FileTarget(PlainTarget):
    """A regular file. A new one gets its name at `finish`; an existing one is changed in place. It grows if needed, but
    only once something is written. A file without write permission can still be looked at."""

    def __init__(self, path: Path, size: int) -> None:
        """`size`: minimum size in bytes."""
        self._path = path
        self._temporary: Path | None = None
        self._read_only = False
        self._kept = threading.local()
        if path.exists():
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._read_only = True
        else:
            self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            self._fd = _unnamed(self._temporary)
        try:
            now = os.fstat(self._fd).st_size
            self._size = max(size, now)
            self._begun = self._claimed = False
            if self._temporary is not None:
                self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Identity:
        return Identity(str(self._path), "file", self._size, read_only=self._read_only)

    @property
    def at_once(self) -> int:
        return 2

    @property
    def file(self) -> int | None:
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        return read_exactly(self._fd, length, offset)

    def holds(self, offset: int, want: bytearray) -> bool:
        have: bytearray | None = getattr(self._kept, "buffer", None)
        if have is None or len(have) != len(want):
            have = self._kept.buffer = bytearray(len(want))
        if os.preadv(self._fd, [have], offset) == len(want):
            return have == want
        return self.read(offset, len(want)) == want

    def claim(self) -> None:
        """Lock the file against other writers: another flash, or a QEMU machine that uses it as its disk."""
        if self._read_only:
            raise DeviceRefusedError("no permission to write to the file", where=str(self._path), hint=LOOKING)
        if not self._claimed:
            _lock(self._fd, self._path)
            self._claimed = True

    def _begin(self) -> None:
        if self._begun:
            return
        self.claim()
        if os.fstat(self._fd).st_size < self._size:
            os.ftruncate(self._fd, self._size)
        self._begun = True

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self._begin()
        return os.pwrite(self._fd, data, offset)

    def zero(self, offset: int, length: int) -> None:
        self._begin()
        for start, end in self.data(offset, length):
            _write_zeros(self._fd, start, end)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield from data_extents(self._fd, offset + length, offset)

    def flush(self) -> None:
        os.fsync(self._fd)
        _forget(self._fd, 0, 0)

    def flush_part(self, offset: int, length: int) -> None:
        os.fsync(self._fd)
        start = offset - offset % LARGEST_FOLIO
        end = -(-(offset + length) // LARGEST_FOLIO) * LARGEST_FOLIO
        _forget(self._fd, start, end - start)

    def finish(self) -> None:
        if os.fstat(self._fd).st_size < self._size:  # nothing was written to it, and the hole at its end is missing
            self._begin()
        if self._temporary is not None:
            if not os.fstat(self._fd).st_nlink:
                self._temporary.unlink(missing_ok=True)  # left by a killed process with the same number
                give_name(self._fd, self._temporary)
            self._temporary.replace(self._path)
            self._temporary = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                self._temporary.unlink()
            self._temporary = None


def _unnamed(temporary: Path) -> int:
    """Create a file, without a name if the file system supports that, so that even a kill leaves nothing behind."""
    with suppress(OSError, AttributeError):  # Linux has these; other failures are reported for the named file, below
        return os.open(temporary.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


class BlockTarget(PlainTarget):
    """A whole block device, opened exclusively: the kernel refuses with EBUSY if it is in use by the system or opened
    exclusively by another program. A read-only device can still be looked at. Raises DeviceRefusedError.

    Reads are direct, so they come from the medium and not from the page cache.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._identity = identity
        self._locked = (
            identity.read_only
        )  # read-only for everybody, by a switch or the kernel, so other readers do no harm
        how = os.O_RDONLY if self._locked else os.O_RDWR | os.O_EXCL
        try:
            self._fd = os.open(path, how | os.O_CLOEXEC)
        except PermissionError as error:
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
            except OSError:
                raise _refusal(path, error) from error
            self._identity = identity._replace(read_only=True)
        except OSError as error:
            raise _refusal(path, error) from error
        self._direct = -1
        self._kept = threading.local()
        with suppress(OSError):  # if direct reads are impossible: buffered reads after dropping the cache
            self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._zeroout = True

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def at_once(self) -> int:
        return 4  # with one request at a time the device would idle in between

    def claim(self) -> None:
        """Nothing to do: it was opened exclusively."""
        if self._locked:
            hint = f"check the card's write-protect switch; {LOOKING}"
            raise DeviceRefusedError("the device is read-only", where=self._identity.path, hint=hint)
        if self._identity.read_only:
            raise _forbidden(self._identity.path)

    def read(self, offset: int, length: int) -> bytes:
        if self._direct < 0:
            return read_exactly(self._fd, length, offset)
        with self._directly(offset, length) as view:
            return bytes(view)

    def holds(self, offset: int, want: bytearray) -> bool:
        if self._direct < 0:
            return super().holds(offset, want)
        with self._directly(offset, len(want)) as view:
            return want == view

    def _directly(self, offset: int, length: int) -> memoryview:
        """Read directly, into memory of this thread that is reused by its next read."""
        start = offset - offset % DIRECT_ALIGN
        span = -(-(offset + length - start) // DIRECT_ALIGN) * DIRECT_ALIGN
        kept: mmap.mmap | None = getattr(self._kept, "buffer", None)
        if kept is None or len(kept) < span:  # the buffer is kept: allocating a new one costs as much as reading
            import mmap  # files do without

            kept = self._kept.buffer = mmap.mmap(-1, span)
        done = 0
        while done < span:
            with memoryview(kept) as view, view[done:span] as rest:
                got = os.preadv(self._direct, [rest], start + done)
            done += got
            if not got or got % DIRECT_ALIGN:
                break
        return memoryview(kept)[offset - start : min(done, offset - start + length)]

    def write(self, offset: int, data: bytes | memoryview) -> int:
        return os.pwrite(self._fd, data, offset)

    def zero(self, offset: int, length: int) -> None:
        if self._zeroout:
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, pack("QQ", offset, length))
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                    raise
                self._zeroout = False
        _write_zeros(self._fd, offset, offset + length)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def flush(self) -> None:
        os.fsync(self._fd)
        with suppress(OSError):  # needs privileges that writing does not; direct reads work without
            fcntl.ioctl(self._fd, _BLKFLSBUF)

    def finish(self) -> None:
        with suppress(OSError):  # the kernel reads the new table; not every device has partitions
            fcntl.ioctl(self._fd, _BLKRRPART)

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


def _forget(fd: int, start: int, length: int) -> None:
    """Drop cached pages of a range, if the system supports that, so that later reads come from the disk. 0 bytes: to
    the end.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def _write_zeros(fd: int, start: int, end: int) -> None:
    for at in range(start, end, len(ZEROS)):
        write_exactly(fd, ZEROS[: end - at], at)


def refuse_used(path: Path) -> None:
    """Raises DeviceRefusedError for a file that another flash is writing or a QEMU machine uses as its disk."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # the next one to open it gives the reason
    try:
        _lock(fd, path)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    from erofs_edge.transport.claim import lock  # imported late: only looking at a file does not need it

    lock(fd, path)


def _refusal(path: Path, error: OSError) -> DeviceRefusedError:
    if error.errno == errno.EBUSY:
        from erofs_edge.transport.claim import taken, user_of

        return taken(str(path), user_of(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return _forbidden(str(path))
    return DeviceRefusedError(f"cannot open: {error.strerror}", where=str(path))


def _forbidden(path: str) -> DeviceRefusedError:
    return DeviceRefusedError(
        "no permission to write to the device",
        where=path,
        hint="run as root, or as a member of the group that owns it (disk)",
    )
