# SPDX-License-Identifier: Apache-2.0
"""The image file while it is being written: it appears under its final name only when it is complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from erofs_edge.errors import CapacityError, SourceError
from erofs_edge.positions import pread, pwritev
from erofs_edge.threads import Background
from erofs_edge.writing import NO_SPACE, NewFile, settled

GATHER = 4 << 20  # bytes to collect before writing
VECTORS = 1000  # chunks per call (IOV_MAX is 1024)
Chunk = bytes | bytearray | memoryview


class Hashing:
    """sha256 of chunks, computed in a separate thread. Only one batch waits at a time, so memory stays bounded."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._thread = Background("erofs-hash")

    def update(self, chunks: Sequence[Chunk]) -> None:
        """Add chunks, which must not change."""
        self._thread.wait()
        self._thread.start(partial(self._update, chunks))

    def digest(self) -> bytes:
        """Return the digest of all chunks so far."""
        self._thread.wait()
        return self._state.digest()

    def close(self) -> None:
        self._thread.close()

    def _update(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._state.update(chunk)


class Follower(Protocol):
    """Reads an image while it is being written."""

    def begin(self, fd: int) -> None:
        """The file, still empty, is about to be written."""

    def written(self, end: int) -> None:
        """All bytes up to `end` are in the file. Called from one thread at a time."""

    def changed(self, offset: int, length: int) -> None:
        """These bytes may have been in the file already and have changed, or will have when the image is complete."""


class Sink:
    """Appends chunks to a file, which a separate thread writes. `position` is where the next one goes, in bytes.

    `hashing`, if given, sees everything that is appended, even what is overwritten after `was_rewound`. `follower` is
    told what is in the file.
    """

    def __init__(self, fd: int, name: Path, hashing: Hashing | None = None, follower: Follower | None = None) -> None:
        self.hashing = hashing
        self._follower = follower
        self._fd = fd
        self._name = name
        self._chunks: list[Chunk] = []
        self._pending = 0
        self._thread = Background("erofs-write")
        self.position = 0
        self.was_rewound = False

    def append(self, chunks: Sequence[Chunk]) -> None:
        """Append chunks, which are kept until written and must not change."""
        self._chunks += chunks
        size = sum(map(len, chunks))
        self._pending += size
        self.position += size
        if self._pending >= GATHER:
            self._start()

    def flush(self) -> None:
        """Wait until everything is written. Raises CapacityError if the file system is full."""
        self._start()
        self._thread.wait()

    def close(self) -> None:
        """End writing. Errors of pending writes no longer matter."""
        self._thread.close()

    def _start(self) -> None:
        """Hand what was collected to the writing thread. Only one batch waits at a time, so memory stays bounded.
        Raises the errors of the previous batch."""
        chunks, self._chunks = self._chunks, []
        start = self.position - self._pending
        self._pending = 0
        self._thread.wait()
        if chunks:
            self._thread.start(partial(self._write, chunks, start))
        if self.hashing:
            self.hashing.update(chunks)

    def _write(self, chunks: list[Chunk], start: int) -> None:
        with _writing(self._name):
            for at in range(0, len(chunks), VECTORS):
                start = _write_all(self._fd, chunks[at : at + VECTORS], start)
        if self._follower:
            self._follower.written(start)

    def write_at(self, offset: int, data: Chunk) -> None:
        """Write at a given offset. `position` does not change, and `hashing` does not see the data."""
        self._thread.wait()
        with _writing(self._name):
            _write_all(self._fd, [data], offset)
        if self._follower:
            self._follower.changed(offset, len(data))

    def read(self, offset: int, length: int) -> bytes:
        """Return what was appended earlier."""
        if offset + length > self.position - self._pending:
            self.flush()
        self._thread.wait()
        with _writing(self._name):
            data = pread(self._fd, length, offset)
        if len(data) != length:
            raise SourceError("the image was cut short while it was being written", where=str(self._name))
        return data

    def rewind(self, position: int) -> None:
        """Go back: what was appended from `position` on will be overwritten."""
        self.flush()
        if self._follower:
            self._follower.changed(position, self.position - position)
        self.position = position
        self.was_rewound = True

    def finish(self, size: int) -> None:
        """Complete the file, which then has `size` bytes."""
        self.flush()
        with _writing(self._name):
            os.ftruncate(self._fd, size)
        if self._follower:
            self._follower.written(size)


@contextmanager
def replacing(path: Path, *, hashing: bool = False, follower: Follower | None = None) -> Iterator[Sink]:
    """Yield a sink whose file replaces `path` if the block succeeds, and otherwise disappears.

    If the file system supports it, the file has no name until then, so that even a kill leaves nothing behind. A
    symlink is kept, and its target is replaced. Raises UsageError if `path` exists and is not a regular file.
    """
    path = settled(path)
    with _writing(path):
        new = NewFile(path)
    state = Hashing() if hashing else None
    sink = Sink(new.fd, path, state, follower)
    try:
        if follower:
            follower.begin(new.fd)
        yield sink
        with _writing(path):
            new.place()
    finally:
        sink.close()
        if state:
            state.close()
        new.close()


@contextmanager
def scratch(beside: Path) -> Iterator[Sink]:
    """Yield a sink for an unnamed file on the file system of `beside`, which is gone after the block."""
    import tempfile

    with _writing(beside):
        file = tempfile.TemporaryFile(dir=beside.parent)  # noqa: SIM115 - errors in the block are not this call's
    with file:
        sink = Sink(file.fileno(), beside)
        try:
            yield sink
        finally:
            sink.close()


def _write_all(fd: int, chunks: Sequence[Chunk], offset: int) -> int:
    """Call pwritev until everything is written. Return the offset after it."""
    left = sum(map(len, chunks))
    while left:
        written = pwritev(fd, chunks, offset)
        offset, left = offset + written, left - written
        if left:
            chunks = _after(chunks, written)
    return offset


def _after(chunks: Sequence[Chunk], written: int) -> list[Chunk]:
    for i, chunk in enumerate(chunks):
        if written < len(chunk):
            return [memoryview(chunk)[written:], *chunks[i + 1 :]]
        written -= len(chunk)
    return []


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CapacityError(f"no space left for the image: {error.strerror}", where=str(path)) from error
        raise SourceError(f"cannot write the image: {error.strerror}", where=str(path)) from error
