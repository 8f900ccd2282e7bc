# SPDX-License-Identifier: Apache-2.0
"""The image file while it is being made: written beside its final name, seen under it only when complete."""

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

GATHER = 4 << 20  # bytes collected before they are written
VECTORS = 1000  # chunks a call takes (IOV_MAX is 1024)
Chunk = bytes | bytearray | memoryview


class Hashing:
    """sha256 of chunks in a thread of its own: only a single batch waits, so that memory stays bounded."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._thread = Background("erofs-hash")

    def update(self, chunks: Sequence[Chunk]) -> None:
        """The chunks must not change."""
        self._thread.wait()
        self._thread.start(partial(self._update, chunks))

    def digest(self) -> bytes:
        """Of all chunks so far."""
        self._thread.wait()
        return self._state.digest()

    def close(self) -> None:
        self._thread.close()

    def _update(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._state.update(chunk)


class Follower(Protocol):
    """Who reads an image while it is being written."""

    def begin(self, fd: int) -> None:
        """The file, which is empty."""

    def written(self, end: int) -> None:
        """All bytes up to `end` are in the file. Called from one thread at a time."""

    def changed(self, offset: int, length: int) -> None:
        """Bytes that may have been there are others now, or will be when the image is whole."""


class Sink:
    """Appends chunks to a file, which a thread of its own writes. `position` is where the next one goes, in bytes.

    `hashing`, where asked for, sees everything that is appended, also what is overwritten after `was_rewound`.
    `follower` is told what is in the file.
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
        """Chunks are kept until written: they must not change."""
        self._chunks += chunks
        size = sum(map(len, chunks))
        self._pending += size
        self.position += size
        if self._pending >= GATHER:
            self._start()

    def flush(self) -> None:
        """Raises CapacityError when the file system is full."""
        self._start()
        self._thread.wait()

    def close(self) -> None:
        """Nothing is being written any more; errors of that do not matter now."""
        self._thread.close()

    def _start(self) -> None:
        """What was gathered goes to a thread that writes: only a single batch waits, so that memory stays bounded.
        Raises the errors of the one before."""
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
        """Write at a place of its own; `position` stays, and `hashing` does not see it."""
        self._thread.wait()
        with _writing(self._name):
            _write_all(self._fd, [data], offset)
        if self._follower:
            self._follower.changed(offset, len(data))

    def read(self, offset: int, length: int) -> bytes:
        """What was appended before."""
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
        """Everything is written; the file has `size` bytes."""
        self.flush()
        with _writing(self._name):
            os.ftruncate(self._fd, size)
        if self._follower:
            self._follower.written(size)


@contextmanager
def replacing(path: Path, *, hashing: bool = False, follower: Follower | None = None) -> Iterator[Sink]:
    """A sink whose file takes the place of `path` when the block ends well, and vanishes when it does not.

    Where the file system can, the file has no name until then, so that not even a kill leaves anything behind.
    A symlink stays, and what it points to is replaced. Raises UsageError where `path` is there and is no regular file.
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
    """A sink whose file has no name and is gone when the block ends, on the file system of `beside`."""
    import tempfile

    with _writing(beside):
        file = tempfile.TemporaryFile(dir=beside.parent)  # noqa: SIM115 - an error within the block is not one of this
    with file:
        sink = Sink(file.fileno(), beside)
        try:
            yield sink
        finally:
            sink.close()


def _write_all(fd: int, chunks: Sequence[Chunk], offset: int) -> int:
    """pwritev until everything is written; the offset after it."""
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
