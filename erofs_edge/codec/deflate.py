# SPDX-License-Identifier: Apache-2.0
"""Raw deflate streams (RFC 1951): decoded by Python's zlib, written by libdeflate.

Which zlib Python was built with depends on the host, and different builds give different bytes. libdeflate comes with
the pinned wheel `deflate`, is faster, and its output does not depend on the processor. It is called through ctypes,
since the package's own interface allocates a compressor per call; that interface is used where the C library is not
exported (Windows). Known answers check both on first use.
"""

from __future__ import annotations

import ctypes
import weakref
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from erofs_edge.codec.known import digest_of, known_input
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.search import SearchedOutput, memory
from erofs_edge.codec.zstd import Outlines
from erofs_edge.errors import FormatError, ToolError

WHEEL = "0.9.0"
VERSION = f"libdeflate of deflate {WHEEL}"
LEVEL_MIN, LEVEL_MAX, LEVEL_DEFAULT = 1, 12, 6
WINDOW_BITS = 15
OUTLINE_FACTOR = 0.89  # its sizes to those of an outline
# a stored block that is not the last starts with a 0 byte, which image readers would take for padding before the
# stream; its five upper bits have no meaning (RFC 1951, 3.2.4)
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

# level: `digest_of` its stream of all of `known_input`
_KNOWN_ANSWERS: dict[int, str] = {
    1: "9ed89cd234c2ed1a0766f1948d1d548f",
    2: "a33b01230fb95c3bb8cd44edd43a11cb",
    3: "46ca74b0d5d8440eadb9aea3bd40835e",
    4: "1fb29580627de645f6dc563e5262ff99",
    5: "2de5abd5f897d9460aea3f27dde847b3",
    6: "d4c60ee2f427f27f8fc5f9b8aa88448f",
    7: "f1f64810ed23b5fe776cb7da6fe4e6b3",
    8: "f5fae981805063b5d098cc04c18769c9",
    9: "f5fae981805063b5d098cc04c18769c9",
    10: "e7be018ffeb67de865e4f8588afb8b0d",
    11: "182d3eca9da4a9e39266df3e48f9f66e",
    12: "499224a46c8db438b6d2b66cda44c48b",
}


def compressor(level: int, capacity: int, padding: int) -> SearchedOutput:
    """Return a compressor for one thread. Raises ToolError if the wheel is not the known version."""
    _check(level)
    return SearchedOutput(_streams(level), capacity, padding, Outlines(), OUTLINE_FACTOR)


class _Compress:
    """(address, length) → deflate stream, with its own compressor and buffer."""

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


def _streams(level: int) -> Callable[[int, int], bytes]:
    """Return (address, length) → deflate stream. Raises ToolError, with the version to install, without the package."""
    library = _library()
    if library is not None:
        return _Compress(library, level)
    compress = _package().deflate_compress

    def made(address: int, length: int) -> bytes:
        stream = compress(memory(address, length), level)
        if not stream[0]:
            stream[:1] = _STORED
        return bytes(stream)

    return made


@cache
def _library() -> ctypes.CDLL | None:
    """Return the C library; None if the extension module does not export it. Raises ToolError without the package."""
    try:
        library = ctypes.CDLL(_package()._deflate.__file__)
        for name, (result, arguments) in _SYMBOLS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        return None
    return library


def _package() -> Any:
    try:
        import deflate
    except (ImportError, OSError) as error:
        raise ToolError(f"the deflate package cannot be loaded: {error}", hint=_HINT) from error
    return deflate


@cache
def _check(level: int) -> None:
    """Raises ToolError if the library's output differs from the known answers. Only levels in use are checked."""
    data = known_input()
    if digest_of(_streams(level)(address_of(data), len(data))) != _KNOWN_ANSWERS[level]:
        raise ToolError(f"the deflate package gives different bytes than it should for deflate,{level}", hint=_HINT)


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """Decode `size` bytes from one stream; anything after the stream is ignored, as kernels do.

    The stream must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there. Never
    uses more than about `size` bytes, whatever the stream says. Raises FormatError on anything else.
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
