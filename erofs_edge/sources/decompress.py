# SPDX-License-Identifier: Apache-2.0
"""Decompress gzip, xz, zstd and bzip2 streams in pieces of bounded size, in bounded memory.

Concatenated streams count as one, as in the formats' own tools. The formats are recognized by their magic bytes (RFC
1952 §2.3.1; xz-file-format §2.1.1.1; RFC 8878 §3.1.1; bzip2 "BZh").
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from erofs_edge.errors import SourceError

PIECE = 1 << 20  # bytes of output at a time, and of input
XZ_MEMORY = 512 << 20  # bytes; `xz -9` needs 65 MB
ZSTD_WINDOW = 128 << 20  # bytes; the limit of the zstd program without --long
HEAD = 262  # bytes needed to recognize the format
MAGIC = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2"}

# A small input with a very large output is an attack or a mistake: no file system for a board looks like that. Real
# packages and root file systems stay below 1:50.
BOMB_FREE = 1 << 30  # bytes of output that any input may have
BOMB_RATIO = 256


def codec_of(head: bytes) -> str:
    """'gz', 'xz', 'zst', 'bz2' or 'none' from the first HEAD bytes of a stream.

    A tar archive begins with a name, which may look like anything, so tar's own magic is checked first.
    """
    if head[257:262] == b"ustar":
        return "none"
    return next((codec for magic, codec in MAGIC.items() if head.startswith(magic)), "none")


def codec_of_file(path: Path, where: str) -> str:
    """As `codec_of`. Raises SourceError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return codec_of(file.read(HEAD))
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=where) from error


def decompressed(read: Callable[[int], bytes], codec: str, where: str) -> Iterator[bytes]:
    """The output of a whole stream in pieces (of at most PIECE bytes; 128 MiB for a hostile zstd stream).

    `read(n)` returns up to n bytes of input, b"" at its end. Raises SourceError if the input is damaged, ends early,
    needs too much memory, or expands beyond BOMB_FREE + BOMB_RATIO times its own size.
    """
    taken = made = 0

    def counted(length: int) -> bytes:
        nonlocal taken
        data = read(length)
        taken += len(data)
        return data

    try:
        for piece in _streams(counted, codec):
            made += len(piece)
            if made > BOMB_FREE + BOMB_RATIO * taken:
                raise SourceError(f"decompression bomb: {taken} bytes became more than {made}", where=where)
            yield piece
    except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        raise SourceError(f"damaged {codec} data: {error}", where=where) from error


class _Decompressor(Protocol):
    """The common interface of lzma and bz2."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's object with the interface of the other two."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Zstd:
    """zstandard's object with the interface of the other two; small inputs bound the output, at 128 KiB per 4 bytes."""

    STEP = 4096

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._zstd = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
        self._data = b""
        self._at = 0

    @property
    def eof(self) -> bool:
        return self._zstd.eof

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._data)

    @property
    def unused_data(self) -> bytes:
        return self._zstd.unused_data + self._data[self._at :]

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._data, self._at = data, 0
        step = self._data[self._at : self._at + self.STEP]
        self._at += len(step)
        try:
            return self._zstd.decompress(step)
        except self._error as error:
            raise ValueError(str(error)) from error


def _new(codec: str) -> _Decompressor:
    if codec == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    if codec == "zst":
        return _Zstd()
    if codec == "bz2":
        return bz2.BZ2Decompressor()
    return _Gzip()


def _streams(read: Callable[[int], bytes], codec: str) -> Iterator[bytes]:
    data = read(PIECE)
    while data:
        one = _new(codec)
        while not one.eof:
            if one.needs_input and not data and not (data := read(PIECE)):
                raise EOFError("ends in the middle")
            piece = one.decompress(data, PIECE)
            data = b""
            if piece:
                yield piece
        data = one.unused_data or read(PIECE)
        # streams are padded with zeros to a tape block, or to four bytes (xz-file-format §2.2)
        while data and not (data := data.lstrip(b"\0")):
            data = read(PIECE)


def reader(file: BinaryIO, size: int) -> Callable[[int], bytes]:
    """A `read` function over the next `size` bytes of an open file."""
    left = size

    def read(length: int) -> bytes:
        nonlocal left
        data = file.read(min(length, left))
        left -= len(data)
        return data

    return read
