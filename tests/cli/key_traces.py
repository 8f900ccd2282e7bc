# SPDX-License-Identifier: Apache-2.0
"""Searches for anything that would reveal a private key: in files of any size, in EROFS images, in packed initramfs.

A build's outputs and its cache are more than a gigabyte, and an RSA key leaves some 250 traces to look for: searching
everything for each trace takes a quarter of an hour. No trace is shorter than `PIECE` bytes; so, wherever it is, one of
its 8-byte words starts at a multiple of `STRIDE`. All these words are in one set, and only every other word of the data
is looked up in it. Only where one is found are the traces themselves searched for.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import lz4.block
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError

PIECE = 24
"""bytes: a shorter piece may occur by chance"""
WORD = 8
STRIDE = 16
"""bytes, PIECE - WORD: in the worst case a trace begins one byte after a multiple of it"""
CHUNK = 4 << 20
"""bytes that are searched at once"""
WRAPPED_MAX = 1 << 20
"""size limit for files that may be text, where a trace may be broken across lines"""
LZ4_LEGACY = 0x184C2102.to_bytes(4, "little")
LZ4_LEGACY_BLOCK = 8 << 20


def numbers_of(key: object) -> list[int]:
    """Return the secret numbers of a key."""
    if isinstance(key, RSAPrivateKey):
        n = key.private_numbers()
        return [n.p, n.q, n.d, n.dmp1, n.dmq1, n.iqmp]
    assert isinstance(key, EllipticCurvePrivateKey)
    return [key.private_numbers().private_value]


def traces(key: object) -> Iterator[bytes]:
    """Return pieces of each secret number in either byte order, in hex, in decimal, in base64."""
    for number in numbers_of(key):
        raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
        for at in range(0, len(raw) - PIECE + 1, PIECE):
            piece = raw[at : at + PIECE]
            yield from (piece, piece[::-1], piece.hex().encode(), piece.hex().upper().encode())
            # base64 at each of the three possible offsets of a piece, without the edges
            for shift in range(3):
                yield base64.b64encode(bytes(shift) + piece)[4:-4]
        yield str(number).encode()[:40]


class Search:
    """The search for one key; `unpacked` lists the files whose packed content was searched."""

    def __init__(self, key: object) -> None:
        self.patterns = list(traces(key))
        assert min(map(len, self.patterns)) >= PIECE
        self.words = {
            int.from_bytes(pattern[at : at + WORD], "little") for pattern in self.patterns for at in range(STRIDE)
        }
        self.overlap = max(map(len, self.patterns)) - 1
        self.unpacked: set[Path] = set()

    def found(self, data: bytes) -> bool:
        """Whether a trace stands anywhere in `data`."""
        whole = len(data) // STRIDE * STRIDE
        every = memoryview(data)[:whole].cast("Q")[:: STRIDE // WORD]
        # the last stride may be short, but still contain a word
        last = int.from_bytes(data[whole:][:WORD], "little")
        if last not in self.words and self.words.isdisjoint(every):
            return False
        places = (number * STRIDE for number, word in enumerate([*every, last]) if word in self.words)
        near = (data[max(at - STRIDE, 0) : at + self.overlap + 1] for at in places)
        return any(pattern in piece for piece in near for pattern in self.patterns)

    def holds(self, path: Path) -> bool:
        """Whether a file has a trace: in its name, in its content, in what is packed in it."""
        if any(pattern in os.fsencode(path.name) for pattern in self.patterns):
            return True
        return any(map(self.found, self._overlapping(chunks(path)))) or self._found_packed(path)

    def _found_packed(self, path: Path) -> bool:
        for packed in packed_parts(path):
            self.unpacked.add(path)
            if any(map(self.found, self._overlapping(packed))):
                return True
        return False

    def _overlapping(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Join each piece with the end of the previous one, for traces that cross the border."""
        before = b""
        for piece in pieces:
            yield before + piece
            before = (before + piece)[-self.overlap :]

    def holders(self, folder: Path) -> list[Path]:
        """Return the files below a folder that have a trace."""
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return [path for path in files if self.holds(path)]


def chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's content without its holes (a disk has gigabytes of them); that of small files also without line
    breaks."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < WRAPPED_MAX:
            data = file.read()
            yield from (data, b"\n", data.replace(b"\n", b""))
            return
        at = 0
        while (at := next_data(file.fileno(), at)) < size:
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while data := os.pread(file.fileno(), min(CHUNK, end - at), at):
                yield data
                at += len(data)


def next_data(fd: int, at: int) -> int:
    """Return the position of the next byte outside holes, or the file's end."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole until the end
            raise
        return os.fstat(fd).st_size


def packed_parts(path: Path) -> Iterator[Iterator[bytes]]:
    """Yield, in pieces, the files of an EROFS image; the archives in a boot image, in LZ4's legacy frame.

    Disks and their partitions contain those same images and are not unpacked again.
    """
    if path.suffix == ".img":
        try:
            image = Image(path)
        except ErofsFormatError:
            return  # a disk or partition
        with image:
            for _, inode in image.walk():
                if stat.S_ISREG(inode.mode):
                    yield (data for _, data in image.stream(inode))
    if path.suffix in (".efi", ".fit"):
        data, at = path.read_bytes(), -1
        while (at := data.find(LZ4_LEGACY, at + 1)) >= 0:
            yield legacy_blocks(data, at + len(LZ4_LEGACY))


def legacy_blocks(data: bytes, at: int) -> Iterator[bytes]:
    """Yield the decompressed blocks of a legacy frame until one is invalid; nothing if the magic occurs by chance."""
    with suppress(struct.error, lz4.block.LZ4BlockError):
        while True:
            (length,) = struct.unpack_from("<I", data, at)
            yield lz4.block.decompress(data[at + 4 : at + 4 + length], uncompressed_size=LZ4_LEGACY_BLOCK)
            at += 4 + length
