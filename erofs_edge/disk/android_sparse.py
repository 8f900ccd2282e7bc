# SPDX-License-Identifier: Apache-2.0
"""Android sparse images: images for fastboot without their zeros, in pieces that fit the device's memory.

Source: system/core/libsparse/sparse_format.h of AOSP. A range without data becomes a fill with zeros and not a "don't
care", because hash trees cover it as zeros. "Don't care" is only used for what other pieces write.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from erofs_edge.errors import CapacityError, FormatError

MAGIC = 0xED26FF3A
HEADER = Struct("<IHHHHIIII")  # magic, major, minor, sizes of both headers, block size, blocks, chunks, checksum
CHUNK = Struct("<HHII")  # type, reserved, blocks, bytes of the chunk with its header
RAW, FILL, DONT_CARE, CRC32 = 0xCAC1, 0xCAC2, 0xCAC3, 0xCAC4
BLOCK = 4096  # bytes
FILL_SIZE = 4

Extents = Sequence[tuple[int, int]]
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks [first, first + count) of an image: data, or these four bytes repeated."""

    first: int
    count: int
    has_data: bool
    fill: bytes = bytes(FILL_SIZE)


@dataclass(frozen=True, slots=True)
class Piece:
    """A complete sparse image that writes some runs of an image of `blocks` blocks and leaves the rest alone."""

    runs: tuple[Run, ...]
    blocks: int

    @property
    def size(self) -> int:
        """Bytes of the encoded piece."""
        return HEADER.size + sum(_cost(run) for run in self.runs) + CHUNK.size * len(self._gaps())

    def encode(self, read: Read) -> Iterator[bytes]:
        """The piece in parts of at most a MiB; `read(offset, length)` returns the image's bytes, fewer at its end."""
        gaps = self._gaps()
        yield HEADER.pack(MAGIC, 1, 0, HEADER.size, CHUNK.size, BLOCK, self.blocks, len(self.runs) + len(gaps), 0)
        for run in sorted([*self.runs, *gaps], key=lambda one: one.first):
            if run in gaps:
                yield CHUNK.pack(DONT_CARE, 0, run.count, CHUNK.size)
            elif not run.has_data:
                yield CHUNK.pack(FILL, 0, run.count, CHUNK.size + FILL_SIZE) + run.fill
            else:
                yield CHUNK.pack(RAW, 0, run.count, CHUNK.size + run.count * BLOCK)
                for first in range(run.first, run.first + run.count, PART):
                    length = min(PART, run.first + run.count - first) * BLOCK
                    data = read(first * BLOCK, length)
                    yield data + bytes(length - len(data))

    def _gaps(self) -> list[Run]:
        gaps, at = [], 0
        for run in self.runs:
            if run.first > at:
                gaps.append(Run(at, run.first - at, has_data=False))
            at = run.first + run.count
        if at < self.blocks:
            gaps.append(Run(at, self.blocks - at, has_data=False))
        return gaps


PART = 256  # blocks


def plan_pieces(size: int, data: Extents, limit: int) -> list[Piece]:
    """Split an image of `size` bytes, with data in `data` and zeros elsewhere, into pieces of at most `limit` bytes.

    Raises CapacityError if the limit is too small for anything.
    """
    blocks = -(-size // BLOCK)
    return cut_runs(_runs(blocks, data), blocks, limit)


def cut_runs(wanted: Iterable[Run], blocks: int, limit: int) -> list[Piece]:
    """Split runs, in the order of an image of `blocks` blocks, into pieces of at most `limit` bytes; what lies between
    runs is left alone.

    Raises CapacityError if the limit is too small for anything.
    """
    # the header, a gap on both sides, and one block with its own header
    if limit < HEADER.size + 3 * CHUNK.size + BLOCK:
        raise CapacityError(f"the device takes {limit} bytes at a time: too few for any image")
    room = limit - HEADER.size - 2 * CHUNK.size
    pieces: list[Piece] = []
    runs: list[Run] = []
    left = room
    for run in wanted:
        first, count = run.first, run.count
        while count:
            gap = CHUNK.size if runs and runs[-1].first + runs[-1].count < first else 0
            fits = count if not run.has_data else min(count, (left - gap - CHUNK.size) // BLOCK)
            if fits <= 0 or left - gap < CHUNK.size + FILL_SIZE:
                pieces.append(Piece(tuple(runs), blocks))
                runs, left = [], room
                continue
            part = Run(first, fits, run.has_data, run.fill)
            runs.append(part)
            left -= gap + _cost(part)
            first, count = first + fits, count - fits
    if runs:
        pieces.append(Piece(tuple(runs), blocks))
    return pieces


def _runs(blocks: int, data: Extents) -> Iterator[Run]:
    at = 0
    for start, end in data:
        first, last = max(at, start // BLOCK), -(-end // BLOCK)
        if first > at:
            yield Run(at, first - at, has_data=False)
        if last > first:
            yield Run(first, last - first, has_data=True)
        at = max(at, last)
    if at < blocks:
        yield Run(at, blocks - at, has_data=False)


def _cost(run: Run) -> int:
    return CHUNK.size + (run.count * BLOCK if run.has_data else FILL_SIZE)


def is_sparse(start: bytes) -> bool:
    """Whether a file with this beginning is a sparse image."""
    return start[:4] == MAGIC.to_bytes(4, "little")


class SparseFile:
    """A sparse image in a file, without loading its data: `runs` that it sets, `blocks` of the whole image.

    `read(offset, length)` returns bytes of the file. Raises FormatError with the offset if it is malformed.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        head = read(0, min(size, HEADER.size))
        header, chunk_header, self.block, self.blocks, chunks = _head(head)
        self.runs: list[Run] = []
        self._at: list[int] = []  # offsets in the file, of data runs
        at, done = header, 0
        for _ in range(chunks):
            raw = read(at, CHUNK.size) if at + chunk_header <= size else b""
            kind, count, total = _chunk(raw, at, size - at, chunk_header, self.block, blocks=self.blocks - done)
            if kind in (RAW, FILL) and count:
                fill = read(at + chunk_header, FILL_SIZE)
                self.runs.append(Run(done, count, kind == RAW, fill if kind == FILL else bytes(FILL_SIZE)))
                self._at.append(at + chunk_header)
            at, done = at + total, done + count
        if done != self.blocks:
            raise FormatError(f"chunks for {done} blocks of {self.blocks}", where=f"offset {at:#x}")
        self._first = [run.first for run in self.runs]

    @property
    def size(self) -> int:
        """Bytes of the whole image."""
        return self.blocks * self.block

    def pieces(self, limit: int) -> list[Piece]:
        """Split anew; `read` returns their data. Raises CapacityError as `cut_runs` does, FormatError for a block size
        other than 4096 bytes."""
        if self.block != BLOCK:
            raise FormatError(f"a sparse image with blocks of {self.block} bytes, not {BLOCK}", where="offset 0x0")
        return cut_runs(self.runs, self.blocks, limit)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image inside one run of data."""
        number = bisect_right(self._first, offset // BLOCK) - 1
        return self._read(self._at[number] + offset - self._first[number] * BLOCK, length)


def decode(data: memoryview, write: Callable[[int, bytes | memoryview], None], capacity: int) -> int:
    """Unpack a sparse image: `write(offset, bytes)` is called for everything that it sets. Returns the size of the
    image.

    Raises FormatError with the offset if it is malformed or exceeds `capacity` bytes.
    """
    header, chunk_header, block, blocks, chunks = _head(data)
    if blocks * block > capacity:
        raise FormatError(f"a sparse image of {blocks * block} bytes, for {capacity}", where="offset 0x0")
    at, done = header, 0
    for _ in range(chunks):
        raw = data[at : at + CHUNK.size] if at + chunk_header <= len(data) else b""
        kind, count, total = _chunk(raw, at, len(data) - at, chunk_header, block, blocks=blocks - done)
        payload = data[at + chunk_header : at + total]
        if kind == RAW:
            write(done * block, payload)
        elif kind == FILL:
            pattern = bytes(payload) * (block // FILL_SIZE)
            for number in range(done, done + count):
                write(number * block, pattern)
        at, done = at + total, done + count
    if done != blocks:
        raise FormatError(f"chunks for {done} blocks of {blocks}", where=f"offset {at:#x}")
    return int(blocks) * int(block)


def _head(data: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """Bytes of the header, of a chunk's header, and of a block; blocks; chunks."""
    if len(data) < HEADER.size:
        raise FormatError("a sparse image shorter than its header", where="offset 0x0")
    magic, major, _, header, chunk_header, block, blocks, chunks, _ = HEADER.unpack_from(data)
    if magic != MAGIC or major != 1 or header < HEADER.size or chunk_header < CHUNK.size or not block or block % 4:
        raise FormatError("not a sparse image of version 1", where="offset 0x0")
    return header, chunk_header, block, blocks, chunks


def _chunk(
    raw: bytes | memoryview, at: int, left: int, header: int, block: int, *, blocks: int
) -> tuple[int, int, int]:  # fmt: skip
    """(type, blocks, bytes) of a chunk at `at`; the file has `left` bytes from there, the image still lacks
    `blocks`.
    """
    if len(raw) < CHUNK.size:
        raise FormatError("a chunk is cut short", where=f"offset {at:#x}")
    kind, _, count, total = CHUNK.unpack_from(raw)
    expected = {RAW: count * block, FILL: FILL_SIZE, DONT_CARE: 0, CRC32: 4}.get(kind)
    if expected is None or total - header != expected or total > left or count > blocks:
        raise FormatError(f"a bad chunk of type {kind:#x}, {count} blocks, {total} bytes", where=f"offset {at:#x}")
    return kind, count, total
