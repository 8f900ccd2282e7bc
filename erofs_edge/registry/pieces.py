# SPDX-License-Identifier: Apache-2.0
"""Cut a file into pieces and hash it: what a push sends, and what allows reading it in parts later.

Pieces have fixed places, like chunks of an image: what is in the same place in the next version is stored once. Holes,
and pieces of zeros alone, are not stored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import SourceError
from erofs_edge.registry.artifact import BLOCK, HASH, PIECES_MAX, RAW, Piece, Stored

PIECE = 1 << 18  # bytes
TABLE_FROM = 1 << 20  # bytes: smaller files are not read in parts
STEP = 1 << 20  # bytes read at a time
_ZEROS = bytes(BLOCK)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Cut:
    """A file of this machine to be stored, and its table of hashes (b'' without one)."""

    path: Path
    stored: Stored
    table: bytes

    def body(self, piece: Piece) -> Iterator[bytes]:
        """The bytes of a piece. Raises SourceError if the file has become shorter."""
        try:
            with self.path.open("rb", buffering=0) as file:
                at, end = piece.offset, piece.offset + piece.size
                while at < end:
                    data = os.pread(file.fileno(), min(STEP, end - at), at)
                    if not data:
                        raise SourceError("the file became shorter while it was read", where=str(self.path))
                    yield data
                    at += len(data)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(self.path)) from error


def cut_file(
    path: Path,
    name: str,
    *,
    piece: int | None = PIECE,
    table: bool = True,
    media_type: str = RAW,
    device: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Cut:
    """Hash a file in pieces of `piece` bytes (a multiple of BLOCK), or as a whole if it is None.

    Pieces become larger if a file would have too many. Raises SourceError if the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.lseek(file.fileno(), 0, os.SEEK_END)
            if piece is None or size <= piece:
                pieces, hashes = _whole(file.fileno(), size, progress)
            else:
                pieces, hashes = _split(file.fileno(), size, piece, progress)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    wanted = hashes if table and size >= TABLE_FROM else b""
    blocks = hashlib.sha256(wanted).hexdigest() if wanted else ""
    return Cut(path, Stored(name, size, tuple(pieces), blocks, media_type, device), wanted)


def _whole(fd: int, size: int, progress: Progress) -> tuple[list[Piece], bytes]:
    state, table = hashlib.sha256(), bytearray()
    for at in range(0, size, STEP):
        data = _read(fd, at, min(STEP, size - at))
        state.update(data)
        table += block_hashes(data)
        progress(at + len(data), size)
    return [Piece(0, size, state.hexdigest())], bytes(table)


def _split(fd: int, size: int, length: int, progress: Progress) -> tuple[list[Piece], bytes]:
    extents = list(data_extents(fd, size))
    while len(numbers := _numbers(extents, length)) > PIECES_MAX:
        length *= 2
    table = bytearray(-(-size // BLOCK) * HASH)
    pieces: list[Piece] = []

    def one(number: int) -> tuple[Piece, bytes]:
        at = number * length
        data = _read(fd, at, min(length, size - at))
        return Piece(at, len(data), hashlib.sha256(data).hexdigest()), block_hashes(data)

    with ThreadPoolExecutor(2) as pool:
        for done, (piece, hashes) in enumerate(pool.map(one, numbers), 1):
            progress(done * length, len(numbers) * length)
            if any(hashes):
                pieces.append(piece)
                start = piece.offset // BLOCK * HASH
                table[start : start + len(hashes)] = hashes
    if not pieces:
        pieces.append(one(0)[0])
    return pieces, bytes(table)


def _numbers(extents: list[tuple[int, int]], length: int) -> list[int]:
    """Numbers of the pieces that have data."""
    found = {number for start, end in extents for number in range(start // length, -(-end // length))}
    return sorted(found)


def block_hashes(data: bytes) -> bytes:
    """The part of a table of hashes for some bytes that begin at a multiple of BLOCK."""
    view = memoryview(data)
    found = []
    for at in range(0, len(data), BLOCK):
        block = view[at : at + BLOCK]
        zero = block == memoryview(_ZEROS)[: len(block)]
        found.append(bytes(HASH) if zero else hashlib.sha256(block).digest())
    return b"".join(found)


def _read(fd: int, at: int, length: int) -> bytes:
    parts, end = [], at + length
    while at < end:
        data = os.pread(fd, end - at, at)
        if not data:
            raise OSError(5, "the file became shorter while it was read")
        parts.append(data)
        at += len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
