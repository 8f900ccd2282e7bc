# SPDX-License-Identifier: Apache-2.0
"""Decode LZ4 blocks where the C library is not accessible: extension modules on Windows do not export theirs."""

from __future__ import annotations

from erofs_edge.errors import ToolError

MATCH_MIN = 4


def decode_all(data: bytes, size: int) -> bytes | None:
    """Return the content of a block of at most `size` bytes; None if it is corrupt or larger. Raises ToolError if the
    `lz4` package is not installed."""
    try:
        from lz4 import block
    except ImportError as error:
        raise ToolError(f"the lz4 package is not installed: {error}", hint="pip install lz4") from error
    try:
        found: bytes = block.decompress(data, uncompressed_size=size)
    except block.LZ4BlockError:
        return None
    return found


def decode_start(data: bytes, size: int) -> bytes | None:
    """Return the first `size` bytes of a block that may hold more, for which the package has no call; None if it is
    corrupt before that, or holds less."""
    out, at = bytearray(), 0
    try:
        while True:
            token = data[at]
            length, at = _length(data, at + 1, token >> 4)
            literals = data[at : at + min(length, size - len(out))]
            out += literals
            if len(out) == size:
                return bytes(out)
            at += length
            back = data[at] | data[at + 1] << 8
            if not 0 < back <= len(out):
                return None
            length, at = _length(data, at + 2, token & 15)
            length = min(length + MATCH_MIN, size - len(out))
            again = bytes(out[-back:])
            out += (again * (length // back + 1))[:length]
    except IndexError:  # the block is cut off
        return None


def _length(data: bytes, at: int, length: int) -> tuple[int, int]:
    """Return the length that begins in a token, and where it ends. Raises IndexError."""
    more = 255 if length == 15 else 0
    while more == 255:
        more = data[at]
        length, at = length + more, at + 1
    return length, at
