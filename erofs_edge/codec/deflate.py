# SPDX-License-Identifier: Apache-2.0
"""Raw deflate streams (RFC 1951): decoded by the interpreter's zlib, made by libdeflate.

Which zlib a Python was built with is the host's choice, and other builds emit other bytes. libdeflate comes with the
pinned wheel `deflate`, is faster, and its bytes do not depend on the processor; it is reached by ctypes, since the
package's own interface allocates a compressor a call. Known answers guard it at first use.
"""

from __future__ import annotations

import ctypes
import hashlib
import weakref
import zlib
from functools import cache

from erofs_edge.codec.known import known_input
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.search import SearchedOutput
from erofs_edge.errors import FormatError, ToolError

WHEEL = "0.9.0"
VERSION = f"libdeflate of deflate {WHEEL}"
LEVEL_MIN, LEVEL_MAX, LEVEL_DEFAULT = 1, 12, 6
WINDOW_BITS = 15
# a stored block that is not the last starts with a byte 0, which readers of images take for padding before the
# stream; its five upper bits mean nothing (RFC 1951, 3.2.4)
_STORED = b"\x40"

_HINT = f"pip install deflate=={WHEEL}"
_SYMBOLS: dict[str, tuple[type | None, list[type]]] = {
    "libdeflate_alloc_compressor": (ctypes.c_void_p, [ctypes.c_int]),
    "libdeflate_free_compressor": (None, [ctypes.c_void_p]),
    "libdeflate_deflate_compress_bound": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]),
    "libdeflate_deflate_compress": (
        ctypes.c_size_t,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t],
    ),
}

# (level, output size): (bytes consumed, first half of the output's sha256) for `known_input`
_KNOWN_ANSWERS: dict[tuple[int, int], tuple[int, str]] = {
    (1, 4096): (13437, "39dfdb4e28058a035d6efb32b047c4ae"),
    (1, 16384): (80597, "44d0408fbc50f864c81e025fd8519c5c"),
    (6, 4096): (13861, "d8f5e38ec16b07f39825277d919a737b"),
    (6, 16384): (85555, "b7c3bccf3150fefb83758c3a40a86fd1"),
    (9, 4096): (13861, "a6fd306209301b14b10760718b05f167"),
    (9, 16384): (87117, "efa2ff0d4f6df9f9ea99fd26aa3bcb33"),
    (12, 4096): (13965, "3572973a4396a112768ee4764d5c95a8"),
    (12, 16384): (91674, "ba0e1e55090a78eb5cf45770166dceaa"),
}


def compressor(level: int, capacity: int, padding: int) -> SearchedOutput:
    """A compressor for one thread. Raises ToolError when the wheel is not the one we know."""
    return SearchedOutput(_Compress(_library(), level), capacity, padding)


class _Compress:
    """(address, length) → the deflate stream, with a compressor and a buffer of its own."""

    def __init__(self, library: ctypes.CDLL, level: int) -> None:
        self._library = library
        self._state = library.libdeflate_alloc_compressor(level)
        if self._state is None:
            raise MemoryError("libdeflate has no memory for a compressor")
        weakref.finalize(self, library.libdeflate_free_compressor, self._state)
        self._buffer = ctypes.create_string_buffer(1)

    def __call__(self, address: int, length: int) -> bytes:
        bound = self._library.libdeflate_deflate_compress_bound(self._state, length)
        if bound > len(self._buffer):
            self._buffer = ctypes.create_string_buffer(bound)
        size = self._library.libdeflate_deflate_compress(self._state, address, length, self._buffer, bound)
        if self._buffer[0] == b"\0":
            self._buffer[0] = _STORED
        return ctypes.string_at(self._buffer, size)


@cache
def _library() -> ctypes.CDLL:
    """The C library, checked. Raises ToolError with the pin to install when it is not the one we know."""
    try:
        import deflate

        library = ctypes.CDLL(deflate._deflate.__file__)
        for name, (result, arguments) in _SYMBOLS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError) as error:
        raise ToolError(f"the deflate package lacks what images need: {error}", hint=_HINT) from error
    for (level, capacity), answer in _KNOWN_ANSWERS.items():
        if _answer(library, level, capacity) != answer:
            raise ToolError(f"the deflate package gives other bytes than known for deflate,{level}", hint=_HINT)
    return library


def _answer(library: ctypes.CDLL, level: int, capacity: int) -> tuple[int, str]:
    data = known_input()
    one = SearchedOutput(_Compress(library, level), capacity)
    consumed, produced = one.fill(address_of(data), len(data))
    return consumed, hashlib.sha256(one.padded(produced, produced)).hexdigest()[:32]


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
