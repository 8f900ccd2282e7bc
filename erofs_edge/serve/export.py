# SPDX-License-Identifier: Apache-2.0
"""What a server exports: a file under a name, or another readable object, and statistics of what was read."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Protocol

from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import SourceError
from erofs_edge.reading import read_exactly
from erofs_edge.transport.claim import lock
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.server import Offer
from erofs_edge.writing import sync_data

BLOCK = 4096  # bytes: the unit in which reads are counted
EXTENTS_MAX = 4096  # per block status answer
ZEROS = bytes(1 << 20)


class Activity:
    """Statistics of reads: requests, bytes sent, and which blocks were touched. Safe to use from several threads.

    record  keep the order as well, in `touches`: (nanoseconds of a monotonic clock, first block, blocks) of what had
            not been read before. It has at most as many rows as there are blocks.
    """

    def __init__(self, size: int, *, record: bool = False) -> None:
        self._lock = threading.Lock()
        self._touched = bytearray(-(-size // BLOCK))
        self._size = size
        self.record = record
        self.touches: list[tuple[int, int, int]] = []
        self.requests = 0
        self.bytes_read = 0

    def note(self, offset: int, length: int) -> None:
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        with self._lock:
            self.requests += 1
            self.bytes_read += length
            if self.record:
                self._record(first, last)
            self._touched[first:last] = b"\1" * (last - first)

    def _record(self, first: int, last: int) -> None:
        at = time.monotonic_ns()
        while (start := self._touched.find(0, first, last)) >= 0:
            end = self._touched.find(1, start, last)
            end = last if end < 0 else end
            self.touches.append((at, start, end - start))
            first = end

    @property
    def bytes_touched(self) -> int:
        """Bytes of all blocks of which anything was read."""
        with self._lock:
            count = self._touched.count(1)
            tail = self._size % BLOCK
            return count * BLOCK - (BLOCK - tail if tail and self._touched[-1:] == b"\1" else 0)


class Export(Protocol):
    """Something that can be served. Its methods raise OSError; `read` does so before anything is sent, unless it is
    `direct`.
    """

    direct: bool
    path: Path
    offer: Offer
    activity: Activity

    def send(self, to: socket.socket, header: bytes, offset: int, length: int) -> None: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes | bytearray) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def extents(self, offset: int, length: int) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class FileExport:
    """A regular file or block device.

    Raises SourceError if it cannot be opened, DeviceRefusedError if it is writable and another program is writing it.
    Its methods raise OSError.
    """

    direct = True

    def __init__(self, path: Path, *, writable: bool = False, description: str = "") -> None:
        self.path = path
        try:
            self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
        if writable:
            try:
                lock(self._fd, path)
            except BaseException:
                os.close(self._fd)
                raise
        self.offer = Offer(size, read_only=not writable, description=description)
        self.activity = Activity(size)

    def send(self, to: socket.socket, header: bytes, offset: int, length: int) -> None:
        """The header, then the bytes of the file, straight from the page cache."""
        _send_all(to, header, socket.MSG_MORE)
        end = offset + length
        while offset < end:
            count = os.sendfile(to.fileno(), self._fd, offset, end - offset)
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was served")
            offset += count

    def read(self, offset: int, length: int) -> bytes:
        data = read_exactly(self._fd, length, offset)
        if len(data) < length:
            raise OSError(errno.EIO, "the file became shorter while it was served")
        return data

    def write(self, offset: int, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._fd, rest, offset)
            offset, rest = offset + count, rest[count:]

    def zero(self, offset: int, length: int) -> None:
        """Write zeros where there are none yet: holes of a sparse file stay holes."""
        for start, end in data_extents(self._fd, offset + length, offset):
            for at in range(start, end, len(ZEROS)):
                self.write(at, ZEROS[: end - at])

    def flush(self) -> None:
        sync_data(self._fd)

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, flags of base:allocation) of what is data and what is a hole."""
        end, at = offset + length, offset
        extents: list[tuple[int, int]] = []
        for start, stop in data_extents(self._fd, end, offset):
            if start > at:
                extents.append((start - at, wire.STATE_HOLE | wire.STATE_ZERO))
            extents.append((stop - start, 0))
            at = stop
            if len(extents) >= EXTENTS_MAX:
                return extents
        if at < end:
            extents.append((end - at, wire.STATE_HOLE | wire.STATE_ZERO))
        return extents

    def close(self) -> None:
        os.close(self._fd)


def _send_all(to: socket.socket, data: bytes, flags: int) -> None:
    while data:
        data = data[to.send(data, flags) :]
