# SPDX-License-Identifier: Apache-2.0
"""MicroLZMA: LZMA1 without header and end marker (``linux/xz.h``, ``lzma/container.h`` of liblzma).

The first byte of an LZMA1 stream is always 0; MicroLZMA stores the inverted properties there instead. Python's module
can decode it, but only the C library can write it (since liblzma 5.4), so that is called through ctypes: the library
the module is linked with, or else the host's. No wheel contains it, so the known answers reject a different liblzma.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from erofs_edge.codec.known import digest_of, known_input
from erofs_edge.codec.libraries import system_libraries
from erofs_edge.codec.lz4 import address_of
from erofs_edge.errors import FormatError, ToolError

if TYPE_CHECKING:
    from types import ModuleType

VERSION = "liblzma 5.4"
LEVEL_MIN, LEVEL_PLAIN_MAX, LEVEL_MAX, LEVEL_DEFAULT = 0, 9, 109, 6
EXTREME = 100  # added to a level: the same but slower (xz -e), as in mkfs.erofs
DICTIONARY_MIN, DICTIONARY_MAX = 4096, 8 << 20  # bytes; kernels refuse other sizes (fs/erofs/decompressor_lzma.c)
_SIZE_UNKNOWN = (1 << 64) - 1
_MEMORY_MAX = 32 << 20  # memory limit of a decoder: the largest dictionary and its tables

_FINISH, _OK, _STREAM_END = 3, 0, 1
_PRESET_EXTREME = 1 << 31
_HINT = "use a Python that is linked with liblzma 5.4 or later, or another compression"


class _Stream(ctypes.Structure):
    """lzma_stream of ``lzma/base.h``."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_size_t),
        ("total_in", ctypes.c_uint64),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_size_t),
        ("total_out", ctypes.c_uint64),
        ("allocator", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
        ("reserved", ctypes.c_uint64 * 12),
    )


_SYMBOLS: dict[str, tuple[type | None, list[type]]] = {
    "lzma_lzma_preset": (ctypes.c_ubyte, [ctypes.c_void_p, ctypes.c_uint32]),
    "lzma_microlzma_encoder": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "lzma_code": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "lzma_end": (None, [ctypes.c_void_p]),
}

KNOWN_CAPACITY, KNOWN_DICTIONARY = 8 << 10, 64 << 10  # bytes
# level: (bytes consumed, `digest_of` the output) for `known_input`
_KNOWN_ANSWERS: dict[int, tuple[int, str]] = {
    0: (35163, "c9fc8266c53d6c29017dd408daf70bd8"),
    1: (35159, "2ba53015a8c194cc54fb2f9fb332b1ce"),
    2: (35195, "1447e6d9ed4cea927f95c3fcf2fc8d0a"),
    3: (35242, "6e1d70e2f29c5fc8e57ea25117ded4b8"),
    4: (35368, "db64fb2524dd18d7ff66663911c7d4c3"),
    5: (35527, "888dcd2b277a432c4f6e45ef97211e84"),
    6: (35523, "1f3cc7073ed10502da79d46a6a572074"),
    7: (35523, "1f3cc7073ed10502da79d46a6a572074"),
    8: (35523, "1f3cc7073ed10502da79d46a6a572074"),
    9: (35523, "1f3cc7073ed10502da79d46a6a572074"),
    100: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    101: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    102: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    103: (35519, "b184ed701ded60db4be4f3f2366049cd"),
    104: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    105: (35519, "b184ed701ded60db4be4f3f2366049cd"),
    106: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    107: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    108: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
    109: (35516, "2dba001ae59f4ed89255bcfffbb32dc1"),
}


class FixedOutput:
    """A compressor for one thread, like `lz4.FixedOutput`. `dictionary` is how far matches reach back, in bytes.

    Raises ToolError if no known liblzma can be found.
    """

    def __init__(
        self, level: int, capacity: int, padding: int, dictionary: int, *, library: ctypes.CDLL | None = None
    ) -> None:
        self._library = library or _library(level)
        self._capacity = capacity
        self._padding = padding
        self._buffer = ctypes.create_string_buffer(padding + capacity)
        self._output = ctypes.addressof(self._buffer) + padding
        # lzma_options_lzma begins with the dictionary size
        self._options = ctypes.create_string_buffer(512)
        preset = level - EXTREME | _PRESET_EXTREME if level >= EXTREME else level
        if self._library.lzma_lzma_preset(self._options, preset):
            raise ToolError(f"liblzma has no level {level}")
        ctypes.c_uint32.from_buffer(self._options).value = dictionary
        self._stream = _Stream()
        # the finalizer holds the stream, not the compressor
        weakref.finalize(self, self._library.lzma_end, ctypes.pointer(self._stream)).atexit = False

    def fill(self, address: int, length: int, capacity: int | None = None) -> tuple[int, int]:
        """Compress as many of the `length` bytes at `address` as fit. Return (bytes consumed, bytes produced)."""
        stream = self._stream
        status = self._library.lzma_microlzma_encoder(ctypes.byref(stream), self._options)
        if status != _OK:
            raise ToolError(f"liblzma cannot compress: error {status}")
        stream.next_in, stream.avail_in = address, length
        stream.next_out, stream.avail_out = self._output, self._capacity if capacity is None else capacity
        status = self._library.lzma_code(ctypes.byref(stream), _FINISH)
        if status != _STREAM_END:
            raise ToolError(f"liblzma cannot compress: error {status}")
        return stream.total_in, stream.total_out

    def padded(self, produced: int, size: int) -> bytes:
        """Return the last call's `produced` bytes, padded with leading zeros to `size` bytes."""
        if not produced <= size <= produced + self._padding:
            raise ValueError(f"cannot pad {produced} bytes to {size}")
        return ctypes.string_at(self._output + produced - size, size)


def dictionary_size(pcluster: int) -> int:
    """Return the dictionary size of mkfs.erofs for an image's largest pcluster: 4 times that, 32 KiB to 8 MiB."""
    return min(max(4 * pcluster, 32768), DICTIONARY_MAX)


def _candidates() -> Iterator[str | None]:
    try:
        import _lzma

        yield getattr(_lzma, "__file__", None)
    except ImportError:
        pass
    yield from system_libraries("lzma")


@cache
def _library(level: int) -> ctypes.CDLL:
    """Return the first library that gives the known bytes for this level. Raises ToolError if there is none."""
    problem = "it is linked with none that can be reached"
    for candidate in _candidates():
        if candidate is None:
            continue
        try:
            library = ctypes.CDLL(candidate)
            for name, (result, arguments) in _SYMBOLS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            problem = str(error)
            continue
        if _answer(library, level) == _KNOWN_ANSWERS[level]:
            return library
        problem = f"{candidate} gives different bytes than it should"
    raise ToolError(f"this Python has no liblzma that can write MicroLZMA: {problem}", hint=_HINT)


def _answer(library: ctypes.CDLL, level: int) -> tuple[int, str]:
    data = known_input()
    one = FixedOutput(level, KNOWN_CAPACITY, 0, KNOWN_DICTIONARY, library=library)
    consumed, produced = one.fill(address_of(data), len(data))
    return consumed, digest_of(one.padded(produced, produced))


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """Decode `size` bytes from one stream.

    The stream must decode to exactly `size` bytes and fill `data` exactly, as kernels require (pedantic_microlzma in
    ``lib/xz/xz_dec_lzma2.c``). With `partial` it may hold more, and decoding stops after `size` bytes. Never uses more
    than about 2 * `size` bytes plus 32 MiB, whatever the stream says. Raises FormatError on anything else, ToolError if
    Python was built without lzma.
    """
    if size <= 0 or len(data) < 2:
        raise FormatError(f"LZMA stream of {len(data)} bytes cannot hold {size} bytes")
    lzma = _module()
    # no match reaches back beyond the first byte, so this dictionary is large enough
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
    if not partial and decoder.unused_data:
        raise FormatError(f"LZMA stream of {len(data)} bytes ends {len(decoder.unused_data)} bytes before")
    return out


def _module() -> ModuleType:
    try:
        import lzma
    except ImportError as error:
        raise ToolError("this Python was built without lzma", hint="install one that has the module lzma") from error
    return lzma
