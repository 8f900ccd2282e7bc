# SPDX-License-Identifier: Apache-2.0
"""The block index of an image, from which a client can tell which blocks it has to fetch.

The format, little-endian: the magic; u64 bytes of the image, u32 ranges, u32 places, u32 distinct blocks, u32
compressed bytes that follow; compressed with zlib: u64 start and end of each range that is not zeros, in bytes, and u32
for each block of these, the number of its content; then a SHA-256 for each distinct block of 4096 bytes, in the order
of their first appearance. The blocks themselves are in that order in a second file, each once, so any web server that
supports ranges can serve them. Both slots of a disk have the same content, so their blocks are stored once.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import FormatError, SourceError
from erofs_edge.writing import beside

BLOCK = 4096
MAGIC = b"eeindex1"
DIGEST = 32
SIZE_MAX = 1 << 44  # bytes of an image
_HEAD = Struct("<8sQIIII")
_RANGE = Struct("<QQ")
_READ = 4 << 20
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Index:
    """`ranges`: (start, end) bytes of the image that are not zeros; `places`: for each block of these, one after the
    other, the number of its content; `digests`: DIGEST bytes per number."""

    size: int
    ranges: tuple[tuple[int, int], ...]
    places: array[int]
    digests: bytes

    @property
    def distinct(self) -> int:
        """Number of blocks in the second file."""
        return len(self.digests) // DIGEST

    def digest(self, number: int) -> bytes:
        """SHA-256 of a content."""
        return self.digests[number * DIGEST : (number + 1) * DIGEST]

    def encode(self) -> bytes:
        """The index as bytes, which depend only on the image's content."""
        numbers = array("I", self.places)
        if sys.byteorder == "big":
            numbers.byteswap()
        packed = zlib.compress(b"".join(_RANGE.pack(*pair) for pair in self.ranges) + numbers.tobytes(), 9)
        head = _HEAD.pack(MAGIC, self.size, len(self.ranges), len(self.places), self.distinct, len(packed))
        return head + packed + self.digests


def write_index(image: Path, blocks: Path) -> Index:
    """Make the index of an image; its distinct blocks go into the file `blocks`.

    Raises SourceError if the image cannot be read, FormatError if its size is not a whole number of blocks.
    """
    numbers: dict[bytes, int] = {}
    places, ranges = array("I"), list[tuple[int, int]]()
    try:
        with image.open("rb") as source, beside(blocks, "the image's blocks") as path, path.open("wb") as store:
            size = os.fstat(source.fileno()).st_size
            if not size or size % BLOCK or size > SIZE_MAX:
                raise FormatError(f"an image of {size} bytes: no number of {BLOCK}-byte blocks", where=str(image))
            for at, data in _blocks(source.fileno(), size):
                digest = hashlib.sha256(data).digest()
                if digest not in numbers:
                    numbers[digest] = len(numbers)
                    store.write(data)
                places.append(numbers[digest])
                if ranges and ranges[-1][1] == at:
                    ranges[-1] = (ranges[-1][0], at + BLOCK)
                else:
                    ranges.append((at, at + BLOCK))
    except OSError as error:
        raise SourceError(f"cannot read or write: {error.strerror}", where=str(error.filename or image)) from error
    return Index(size, tuple(ranges), places, b"".join(numbers))


def _blocks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of each block that is not zeros."""
    done = 0
    for first, last in data_extents(fd, size, 0):
        start = max(first - first % BLOCK, done)
        done = min(-(-last // BLOCK) * BLOCK, size)
        for at in range(start, done, _READ):
            data = os.pread(fd, min(_READ, done - at), at)
            for inside in range(0, len(data), BLOCK):
                block = data[inside : inside + BLOCK]
                if block != _ZEROS:
                    yield at + inside, block


def parse_index(raw: bytes) -> Index:
    """An index from its bytes. Raises FormatError."""
    if len(raw) < _HEAD.size or not raw.startswith(MAGIC):
        raise FormatError("not an index of an image")
    _, size, count, blocks, distinct, packed = _HEAD.unpack_from(raw)
    wanted = count * _RANGE.size + blocks * 4
    if size > SIZE_MAX or size % BLOCK or count > blocks or blocks > size // BLOCK or distinct > blocks:
        raise FormatError("impossible numbers in an index")
    if len(raw) != _HEAD.size + packed + distinct * DIGEST:
        raise FormatError(f"an index of {len(raw)} bytes is cut short or too long")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(raw[_HEAD.size : _HEAD.size + packed], wanted + 1)
    except zlib.error as error:
        raise FormatError("the index does not unpack") from error
    if len(data) != wanted or not unpacker.eof:
        raise FormatError("the index does not unpack to its size")
    ranges = tuple(_RANGE.iter_unpack(data[: count * _RANGE.size]))
    places = array("I")
    places.frombytes(data[count * _RANGE.size :])
    if sys.byteorder == "big":
        places.byteswap()
    end = total = 0
    for start, stop in ranges:
        if start < end or stop <= start or stop > size or start % BLOCK or stop % BLOCK:
            raise FormatError("ranges of an index overlap or leave the image")
        end, total = stop, total + (stop - start) // BLOCK
    if total != blocks or (blocks and max(places) >= distinct):
        raise FormatError("places of an index do not match its ranges")
    return Index(size, ranges, places, raw[_HEAD.size + packed :])
