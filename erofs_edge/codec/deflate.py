# SPDX-License-Identifier: Apache-2.0
"""Raw deflate streams (RFC 1951), decoded by the interpreter's zlib."""

from __future__ import annotations

import zlib

from erofs_edge.errors import FormatError

WINDOW_BITS = 15


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """`size` bytes out of one stream; what follows the stream is ignored, as kernels do.

    The stream must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there.
    Never holds more than about `size` bytes, whatever the stream says. Raises FormatError on anything else.
    """
    if size <= 0 or not data:
        raise FormatError(f"deflate stream of {len(data)} bytes cannot hold {size} bytes")
    decoder = zlib.decompressobj(-WINDOW_BITS)
    try:
        out = decoder.decompress(data, size)
        if not partial and not decoder.eof:
            out += decoder.decompress(decoder.unconsumed_tail, 1)
    except zlib.error as error:
        raise FormatError(f"deflate stream of {len(data)} bytes is corrupt (wanted {size} bytes): {error}") from error
    if len(out) != size:
        raise FormatError(f"deflate stream of {len(data)} bytes decodes to {len(out)} bytes or more, not {size}")
    if not partial and not decoder.eof:
        raise FormatError(f"deflate stream of {len(data)} bytes does not end after {size} bytes")
    return out
