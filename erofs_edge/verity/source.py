# SPDX-License-Identifier: Apache-2.0
"""What an image is read from: a file, an export of another machine, or a part of either, such as a partition.

Over a link, data is streamed and discarded. The tree is copied first, since it is read more than once and a server that
answers differently the second time would make the check worthless.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from erofs_edge.errors import FormatError
from erofs_edge.positions import READ
from erofs_edge.verity.blocks import SLICE, Reads, Source, read_exactly
from erofs_edge.writing import room_for, write_exactly

PIECE = 1 << 20  # bytes; the unit of what is kept
RUN = 8  # pieces requested at once
Place = Path | Reads
"""a path to open, or a source that is already open"""


class Section:
    """Bytes [start, start + size) of a source."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        self._source, self._start, self.size = source, start, size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer at the end."""
        return read_exactly(self._source, max(min(length, self.size - offset), 0), self._start + offset)


class Kept:
    """A source of which each byte is requested only once. What it returned is kept in an unnamed file, so later checks
    see the same bytes as earlier ones. Use it as a context manager.

    Raises CapacityError if there is not enough space for it.
    """

    def __init__(self, source: Reads) -> None:
        self._source, self.size = source, source.size
        self._here: set[int] = set()  # numbers of pieces
        self._file = tempfile.TemporaryFile(prefix="erofs-edge-")  # noqa: SIM115  closed with it

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer at the end."""
        end = min(offset + length, self.size)
        start = None
        # one past the last piece, to end the last run
        for number in range(offset // PIECE, -(-end // PIECE) + 1):
            missing = number * PIECE < end and number not in self._here
            if missing and start is None:
                start = number
            elif not missing and start is not None:
                self._fetch(start, number)
                start = None
        return read_exactly(self._file.fileno(), max(end - offset, 0), offset)

    def _fetch(self, first: int, last: int) -> None:
        for number in range(first, last, RUN):
            start, end = number * PIECE, min(min(number + RUN, last) * PIECE, self.size)
            data = read_exactly(self._source, end - start, start)
            with _room():
                write_exactly(self._file.fileno(), data, start)
            self._here.update(range(number, min(number + RUN, last)))


@contextmanager
def opened(place: Place) -> Iterator[Source]:
    """Yield a file descriptor, closed after the block; a source that is already open stays open. Raises OSError."""
    if not isinstance(place, Path):
        yield place
        return
    fd = os.open(place, READ)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def copied(source: Source, start: int, end: int) -> Iterator[int]:
    """Copy bytes [start, end) of a source to an unnamed file and yield its descriptor, valid inside the block.

    Raises CapacityError if there is not enough space, FormatError if the source ends early.
    """
    with tempfile.TemporaryFile(prefix="erofs-edge-") as file:
        for offset in range(start, end, SLICE):
            data = read_exactly(source, length := min(SLICE, end - offset), offset)
            if len(data) != length:
                raise FormatError("it ends inside the hash tree", where=f"offset {offset + len(data):#x}")
            with _room():
                write_exactly(file.fileno(), data, offset - start)
        yield file.fileno()


def _room() -> AbstractContextManager[None]:
    return room_for("a copy of what is read twice", tempfile.gettempdir(), hint="TMPDIR=FOLDER")
