# SPDX-License-Identifier: Apache-2.0
"""MicroLZMA: LZMA1 without header and end marker (``linux/xz.h``, ``lzma/container.h`` of liblzma).

The first byte of an LZMA1 stream is always 0; MicroLZMA puts the properties there instead, their bits inverted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erofs_edge.errors import FormatError, ToolError

if TYPE_CHECKING:
    from types import ModuleType

DICTIONARY_MIN, DICTIONARY_MAX = 4096, 8 << 20  # bytes; kernels refuse others (fs/erofs/decompressor_lzma.c)
_SIZE_UNKNOWN = (1 << 64) - 1
_MEMORY_MAX = 32 << 20  # of a decoder: the largest dictionary and its tables


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """`size` bytes out of one stream; what follows the stream is ignored, as kernels do.

    The stream must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there.
    Never holds more than about 2 * `size` bytes and 32 MiB, whatever the stream says. Raises FormatError on anything
    else, ToolError where the interpreter was built without lzma.
    """
    if size <= 0 or len(data) < 2:
        raise FormatError(f"LZMA stream of {len(data)} bytes cannot hold {size} bytes")
    lzma = _module()
    # no distance reaches back further than to the first byte, so that much of a dictionary is enough
    dictionary = min(max(1 << (size - 1).bit_length(), DICTIONARY_MIN), DICTIONARY_MAX)
    told = _SIZE_UNKNOWN if partial else size
    header = bytes([data[0] ^ 0xFF]) + dictionary.to_bytes(4, "little") + told.to_bytes(8, "little") + b"\0"
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY_MAX)
    try:
        out: bytes = decoder.decompress(header + data[1:], size)
        if not partial and not decoder.eof:
            out += decoder.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError(f"LZMA stream of {len(data)} bytes is corrupt (wanted {size} bytes): {error}") from error
    if len(out) != size or not (partial or decoder.eof):
        raise FormatError(f"LZMA stream of {len(data)} bytes decodes to {len(out)} bytes, not {size}")
    return out


def _module() -> ModuleType:
    try:
        import lzma
    except ImportError as error:
        raise ToolError("this Python was built without lzma", hint="install one that has the module lzma") from error
    return lzma
