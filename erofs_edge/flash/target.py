# SPDX-License-Identifier: Apache-2.0
"""What a disk image is written to: a file or a block device (and, in a file of its own, an NBD export).

A Target only moves bytes; what goes where, and whether it may, is decided elsewhere. Methods raise OSError.

What every target can do is write, make zeros and flush. The rest it states in `abilities`, and the planner uses what
there is: a target that hashes by itself is asked for digests instead of data, one that copies is given no block that
another place of its disk has already.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Literal, Protocol

from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.image import read_table

ZEROS = bytes(1 << 20)
BLOCK = 4096  # bytes: what is written or left alone
STEPS = (1 << 20, 64 << 10, BLOCK)  # bytes of the pieces that are asked for, from the top down
DIRECT_ALIGN = 4096  # bytes: offset, length and memory of direct reads

# Linux include/uapi/linux/fs.h
_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
_BLKZEROOUT = 0x127F
# include/uapi/asm-generic/fcntl.h: type and whence, start, length (0: all of it), pid, for 64 bits
_WHOLE_FILE = pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a target says it is. `size` in bytes; a file that does not exist yet has 0."""

    path: str
    kind: Literal["file", "block", "nbd", "provision", "fastboot", "serial"]
    size: int
    sector: int = 512
    model: str = ""
    serial: str = ""
    removable: bool = False
    product: str = ""
    """what a board answers when it is asked which one it is; '' where it cannot be asked, or does not say"""
    names: tuple[str, ...] = ()
    """what such a board answers besides, less exact: of a device tree's `compatible` all but the first"""


class Ability(enum.Flag):
    """What a target can do besides writing.

    READ    `read` gives what the medium holds
    HASH    `digests` are made where the data is, and cost the wire a digest for each range
    COPY    `copy` moves data inside the target
    PATCH   `patch` makes data from a reference inside the target and a delta
    ACTIVATE  `activate` chooses the slot, where the target keeps that state in its own way
    REBOOT  `reboot` starts what was written
    TABLE   partitions have names and the target makes the table itself, by `make_table`; what lies outside of all
            partitions cannot be reached
    """

    NONE = 0
    READ = enum.auto()
    HASH = enum.auto()
    COPY = enum.auto()
    PATCH = enum.auto()
    ACTIVATE = enum.auto()
    REBOOT = enum.auto()
    TABLE = enum.auto()


class Target(Protocol):
    """Random access to what is written; offsets and lengths in bytes. A method without its ability raises
    OSError(EOPNOTSUPP)."""

    @property
    def identity(self) -> Identity: ...

    @property
    def abilities(self) -> Ability: ...

    @property
    def hash_name(self) -> str:
        """What `digests` are: 'sha256', 'sha256-232' (its first 29 bytes) where answers are short, or 'crc32' (four
        bytes, big endian) where the device has nothing better."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Bytes of the pieces that digests are asked for, from the top down. Below the last one a block is written for
        less than asked."""
        ...

    @property
    def cheap_zeros(self) -> bool:
        """Whether making zeros costs less than reading what is there."""
        ...

    @property
    def bytes_on_wire(self) -> int | None:
        """Bytes that went to and from a remote target; None for one that is here."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """What the medium holds; shorter only at its end. Sees everything that was flushed."""
        ...

    @property
    def at_once(self) -> int:
        """Threads that may read at a time."""
        ...

    def holds(self, offset: int, want: bytearray) -> bool:
        """Whether the medium has exactly these bytes there."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write some of the data, at least one byte, and return how much."""
        ...

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        """Write bytes [at, at + length) of an open file (its descriptor) that need not come through this program, or
        nothing: False. What fails may be raised as late as `flush`."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what may hold anything but zeros inside a range."""
        ...

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """HASH: one digest for each (offset, length), in order, of what the medium holds. One call may have thousands
        of ranges; the target divides them as its wire needs."""
        ...

    def copy(self, source: int, offset: int, length: int) -> None:
        """COPY: make bytes [offset, offset + length) what [source, source + length) is. The two do not overlap."""
        ...

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        """PATCH: unpack a zstd frame whose dictionary is the content of [source, source + source_length), which
        gives `length` bytes (`zstd --patch-from`), and make bytes from `offset` on these. Blocks of 4096 bytes that are
        right already are not written again. The two ranges do not overlap; a length of 0 stands for no dictionary."""
        ...

    def activate(self, slot: str) -> None:
        """ACTIVATE: start this slot ('a') next."""
        ...

    def reboot(self) -> None:
        """REBOOT: leave, and start what is there now. The target is of no use afterwards but for `close`."""
        ...

    def partitions(self) -> dict[str, tuple[int, int]]:
        """Name → (start, end) in bytes, as the target has them now; none where there is no table to believe."""
        ...

    def make_table(self, raw: bytes) -> None:
        """TABLE: have these partitions from now on: the start of a disk, a protective MBR and a GPT."""
        ...

    def flush(self) -> None:
        """Everything written is on the medium, and later reads come from there."""
        ...

    def finish(self) -> None:
        """All went well: make the result visible under its name."""
        ...

    def close(self) -> None:
        """Give up what is held; without `finish` a new file vanishes."""
        ...


class PlainTarget:
    """What a target that can read and nothing else besides answers."""

    @property
    def identity(self) -> Identity:
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        raise _unable("be read")

    @property
    def at_once(self) -> int:
        return 1

    def holds(self, offset: int, want: bytearray) -> bool:
        return self.read(offset, len(want)) == want

    @property
    def abilities(self) -> Ability:
        return Ability.READ

    @property
    def hash_name(self) -> str:
        return "sha256"

    @property
    def steps(self) -> tuple[int, ...]:
        return STEPS

    def send(self, offset: int, file: int, at: int, length: int) -> bool:
        return False

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        raise _unable("hash")

    def copy(self, source: int, offset: int, length: int) -> None:
        raise _unable("copy")

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        raise _unable("patch")

    def activate(self, slot: str) -> None:
        raise _unable("choose a slot")

    def reboot(self) -> None:
        raise _unable("restart")

    def partitions(self) -> dict[str, tuple[int, int]]:
        size = self.identity.size
        table = read_table(self.read, size) if size and Ability.READ in self.abilities else None
        return {} if table is None else table.places()

    def make_table(self, raw: bytes) -> None:
        raise _unable("make a table")


class FileTarget(PlainTarget):
    """A regular file. A new one gets its name at `finish`; an existing one is changed in place. It grows if needed, and
    not before something is written."""

    def __init__(self, path: Path, size: int) -> None:
        """`size`: bytes that it must have at least."""
        self._path = path
        self._temporary: Path | None = None
        self._kept = threading.local()
        if path.exists():
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        else:
            self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            now = os.fstat(self._fd).st_size
            self._size = max(size, now)
            self._begun = False
            if self._temporary is not None:
                self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Identity:
        return Identity(str(self._path), "file", self._size)

    @property
    def cheap_zeros(self) -> bool:
        return False

    @property
    def bytes_on_wire(self) -> int | None:
        return None

    @property
    def at_once(self) -> int:
        return 2

    def read(self, offset: int, length: int) -> bytes:
        return _read(self._fd, offset, length)

    def holds(self, offset: int, want: bytearray) -> bool:
        have: bytearray | None = getattr(self._kept, "buffer", None)
        if have is None or len(have) != len(want):
            have = self._kept.buffer = bytearray(len(want))
        if os.preadv(self._fd, [have], offset) == len(want):
            return have == want
        return self.read(offset, len(want)) == want

    def _begin(self) -> None:
        """Nobody else writes the file: neither another flash nor a machine in QEMU that has it as its disk."""
        if self._begun:
            return
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DeviceRefusedError(
                    "another program uses the file", where=str(self._path), hint="another flash, or a machine in QEMU?"
                ) from error
        if os.fstat(self._fd).st_size < self._size:
            os.ftruncate(self._fd, self._size)
        self._begun = True

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self._begin()
        return os.pwrite(self._fd, data, offset)

    def zero(self, offset: int, length: int) -> None:
        self._begin()
        for start, end in self.data(offset, length):
            _write_zeros(self._fd, start, end - start)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield from data_extents(self._fd, offset + length, offset)

    def flush(self) -> None:
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        if os.fstat(self._fd).st_size < self._size:  # nothing was written to it, and it lacks the holes at its end
            self._begin()
        if self._temporary is not None:
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


class BlockTarget(PlainTarget):
    """A whole block device, opened exclusively: the kernel refuses with EBUSY what it has in use itself.

    Reads are direct, so that they come from the medium and not from the page cache.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._identity = identity
        self._fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        self._direct = -1
        self._kept = threading.local()
        with suppress(OSError):  # a device that cannot: buffered reads after the cache was dropped
            self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._zeroout = True

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def cheap_zeros(self) -> bool:
        return False

    @property
    def bytes_on_wire(self) -> int | None:
        return None

    @property
    def at_once(self) -> int:
        return 4  # a device that is asked for one thing at a time waits in between

    def read(self, offset: int, length: int) -> bytes:
        if self._direct < 0:
            return _read(self._fd, offset, length)
        with self._directly(offset, length) as view:
            return bytes(view)

    def holds(self, offset: int, want: bytearray) -> bool:
        if self._direct < 0:
            return super().holds(offset, want)
        with self._directly(offset, len(want)) as view:
            return want == view

    def _directly(self, offset: int, length: int) -> memoryview:
        """What is there, in memory of this thread until its next reading."""
        start = offset - offset % DIRECT_ALIGN
        span = -(-(offset + length - start) // DIRECT_ALIGN) * DIRECT_ALIGN
        kept: mmap.mmap | None = getattr(self._kept, "buffer", None)
        if kept is None or len(kept) < span:  # kept: memory that is new each time costs as much as the reading
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
        _write_zeros(self._fd, offset, length)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def flush(self) -> None:
        os.fsync(self._fd)
        with suppress(OSError):  # needs privileges that writing does not; direct reads do without
            fcntl.ioctl(self._fd, _BLKFLSBUF)

    def finish(self) -> None:
        with suppress(OSError):  # the kernel reads the new table; not every device has partitions
            fcntl.ioctl(self._fd, _BLKRRPART)

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


def _unable(what: str) -> OSError:
    return OSError(errno.EOPNOTSUPP, f"the target cannot {what}")


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def _write_zeros(fd: int, offset: int, length: int) -> None:
    while length:
        done = os.pwrite(fd, memoryview(ZEROS)[: min(length, len(ZEROS))], offset)
        offset, length = offset + done, length - done
