# SPDX-License-Identifier: Apache-2.0
"""LZ4 with a fixed output size, through ctypes and the shared object of the `lz4` wheel.

The package's own Python interface has no fixed-output mode, but its extension module exports the C library. Where it
does not (Windows), the system's ``liblz4`` is used instead; decoding also works without it. Long calls release the GIL.
Another LZ4 release may give different bytes, so the version is pinned and checked with known answers on first use:
different output never goes unnoticed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

from erofs_edge.codec import lz4_blocks
from erofs_edge.codec.known import digest_of, known_input
from erofs_edge.codec.libraries import system_libraries
from erofs_edge.errors import FormatError, ToolError

WHEEL, VERSION = "4.4.5", "1.9.4"
LEVEL_MIN, LEVEL_MAX, OPTIMAL = 1, 12, 10
INPUT_MAX = 0x7E000000  # LZ4_MAX_INPUT_SIZE
# bytes of input that the fast form compresses in less time than reacquiring the GIL takes
SHORT = 32 << 10
GROUND = 1 << 20  # bytes of a buffer that holds the outputs of several calls
PIECE, FIRST_PIECE = 4096, 256  # bytes examined at a time; the first ones usually decide
CHANCE = 1  # bytes saved by strings that repeat by chance in noise

_HINT = f"pip install lz4=={WHEEL}"
_SYMBOLS: dict[str, tuple[type, list[type]]] = {
    "LZ4_versionNumber": (ctypes.c_int, []),
    "LZ4_sizeofStateHC": (ctypes.c_int, []),
    "LZ4_compress_destSize": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int],
    ),
    "LZ4_sizeofStreamState": (ctypes.c_int, []),
    "LZ4_initStream": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "LZ4_resetStream_fast": (ctypes.c_int, [ctypes.c_void_p]),
    "LZ4_compress_fast_continue": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int],
    ),
    "LZ4_initStreamHC": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "LZ4_resetStreamHC_fast": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "LZ4_compress_HC_continue_destSize": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int],
    ),
    "LZ4_decompress_safe": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]),
    "LZ4_decompress_safe_partial": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int],
    ),
}

_LOCKED = ("LZ4_resetStreamHC_fast", "LZ4_resetStream_fast", "LZ4_compress_fast_continue")

# (level, output size): (bytes consumed, `digest_of` the output) for `known_input`
_KNOWN_ANSWERS: dict[tuple[int | None, int], tuple[int, str]] = {
    (None, 4096): (10510, "5aea1142412252db93fc27ca72b18421"),
    (None, 16384): (40174, "27d7c44be536512d1fb41194385cda3e"),
    (3, 4096): (10753, "4ede6d5fdf9a08356f86af8f2a32ef7b"),
    (3, 16384): (40945, "ba6adcc95566c52c73552450e1b9a2a9"),
    (9, 4096): (10758, "9fb756f65d21793b209783283c36a02f"),
    (9, 16384): (40982, "5b7d4a6408ac00308d822c9811c14e2d"),
    (12, 4096): (10767, "ea2cb5c6d7b023560dc265a897972e40"),
    (12, 16384): (41012, "6f5bcabad382815ab259268f8601a837"),
}


class FixedOutput:
    """A compressor for one thread: fits as much input as possible into `capacity` output bytes.

    level     1..12 for LZ4HC, None for LZ4's fast form
    capacity  maximum output bytes of a call
    padding   zero bytes before the output, for `padded`
    library   the C library to use instead of the checked one (needed by the check itself)
    """

    def __init__(
        self, level: int | None, capacity: int, padding: int = 0, *, library: ctypes.CDLL | None = None
    ) -> None:
        if library is None:
            with _loading:  # one thread checks it while others wait
                library = _library()
                group = _group(level)
                for one in range(min(1, group), group + 1):  # calls may use a faster level, see `fill`
                    _check(one)
        self._capacity = capacity
        self._padding = padding
        self._at = self._end = 0  # output position in the buffer; the end is 0 until `padded` hands it out
        self._full: list[bytearray] | None = None  # other buffers in use, after the first `restart`
        self._spare: list[bytearray] = []
        self._start(bytearray(padding + capacity))
        self._consumed = ctypes.c_int()
        self._consumed_at = ctypes.addressof(self._consumed)
        self._level = level
        self._fast = library.LZ4_compress_destSize
        self._short = library.LZ4_compress_destSize_locked
        self._high = library.LZ4_compress_HC_continue_destSize
        self._reset = library.LZ4_resetStreamHC_fast
        if level is not None:
            size = library.LZ4_sizeofStateHC()
            self._state_buffer = ctypes.create_string_buffer(size + 16)
            self._state = (ctypes.addressof(self._state_buffer) + 15) & ~15
            library.LZ4_initStreamHC(self._state, size)

    def fill(
        self, address: int, length: int, capacity: int | None = None, *, level: int | None = None
    ) -> tuple[int, int]:
        """Compress as many of the `length` bytes at `address` as fit. Return (bytes consumed, bytes produced).

        `capacity` is a smaller limit of output bytes for this call, `level` a different level of LZ4HC.
        """
        if self._end:
            self._move_on()
        self._consumed.value = length
        capacity = self._capacity if capacity is None else min(capacity, self._capacity)
        if self._level is None:
            produced = (self._short if length <= SHORT else self._fast)(
                address, self._output, self._consumed_at, capacity
            )
        else:
            # a reset stream gives the same bytes as LZ4_compress_HC_destSize without clearing 256 KiB per call
            self._reset(self._state, level or self._level)
            produced = self._high(self._state, address, self._output, self._consumed_at, capacity)
        return self._consumed.value, produced

    def padded(self, produced: int, size: int) -> memoryview:
        """Return the last call's `produced` bytes, padded with leading zeros to `size` bytes. They stay valid: later
        output goes elsewhere."""
        if not produced <= size <= produced + self._padding:
            raise ValueError(f"cannot pad {produced} bytes to {size}")
        self._end = self._at + self._padding + produced
        start = self._end - size
        self._view[start : self._at + self._padding] = bytes(size - produced)
        return self._view[start : self._end]

    def restart(self) -> None:
        """Reuse the memory of all output handed out by `padded`, which is no longer needed."""
        self._spare += self._full or ()
        self._full = []
        self._at = self._end = 0
        self._output = self._base + self._padding

    def _move_on(self) -> None:
        """Put the next output after what was handed out, or into a new buffer if there is no room."""
        need = self._padding + self._capacity
        if self._end + need > len(self._view):
            if self._full is not None and len(self._ground) >= GROUND:
                self._full.append(self._ground)
            self._start(self._spare.pop() if self._spare else bytearray(max(GROUND, 4 * need)))
        else:
            self._at, self._end = self._end, 0
            self._output = self._base + self._at + self._padding

    def _start(self, ground: bytearray) -> None:
        """Switch to another buffer. Output already handed out keeps the old one alive."""
        self._ground = ground
        self._view = memoryview(ground)  # which also keeps it from being resized
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(ground))
        self._at = self._end = 0
        self._output = self._base + self._padding


class Repeats:
    """Looks for strings that occurred before, as far back as LZ4 reaches. For one thread.

    LZ4's fast form examines every position at first, and fewer and fewer the longer it finds nothing. Here, that
    restarts with each piece of PIECE bytes, so one position in six is examined; but it soon forgets what it saw. So it
    also goes through everything in one call, which remembers most of the beginning, where the most distant matches
    point.
    """

    def __init__(self, longest: int) -> None:
        """`longest`: maximum number of bytes examined in a call."""
        library = _library()
        self._reset, self._compress = library.LZ4_resetStream_fast, library.LZ4_compress_fast_continue
        self._fast = FixedOutput(None, literals(longest)).fill
        size = library.LZ4_sizeofStreamState()
        self._buffers = [ctypes.create_string_buffer(size + 16), ctypes.create_string_buffer(2 * PIECE)]
        state, self._output = map(ctypes.addressof, self._buffers)
        self._state = (state + 15) & ~15
        library.LZ4_initStream(self._state, size)

    def finds_nothing(self, address: int, length: int) -> bool:
        """Whether nothing is found in the `length` bytes at `address` that would save more than CHANCE bytes."""
        compress, state, output = self._compress, self._state, self._output
        self._reset(state)
        at, end, size, saved = address, address + length, FIRST_PIECE, 0
        while at < end:
            size = min(size, end - at)
            saved += literals(size) - compress(state, at, output, size, 2 * PIECE, 1)
            if saved > CHANCE:
                return False
            at += size
            size = min(4 * size, PIECE)
        return self._fast(address, length)[1] >= literals(length) - CHANCE


def literals(length: int) -> int:
    """Return the size of LZ4's output for that many bytes without any match."""
    return length + 1 + (length + 240) // 255


def literals_in(capacity: int) -> int:
    """Return the largest number of such bytes whose output fits `capacity`."""
    return capacity - 1 - (capacity + 240) // 256


_address: Callable[[bytes], int] = ctypes.pythonapi.PyBytes_AsString
ctypes.pythonapi.PyBytes_AsString.argtypes = [ctypes.py_object]
ctypes.pythonapi.PyBytes_AsString.restype = ctypes.c_void_p


def address_of(data: bytes) -> int:
    """Return the memory address of the bytes; valid while `data` is referenced."""
    return _address(data)


class _Scratch(threading.local):
    buffer: ctypes.Array[ctypes.c_char] | None = None


_scratch = _Scratch()
_loading = threading.Lock()


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """Decode `size` bytes from one raw LZ4 block. See `decompress_lent`."""
    return bytes(decompress_lent(data, size, partial=partial))


def decompress_lent(data: bytes, size: int, *, partial: bool = False) -> bytes | memoryview:
    """Decode `size` bytes from one raw LZ4 block into memory that the thread's next call overwrites.

    The block must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there. Allocates
    `size` bytes and no more, whatever the block says. Raises FormatError on anything else.
    """
    if size <= 0 or size > INPUT_MAX or not data:
        raise FormatError(f"LZ4 block of {len(data)} bytes cannot hold {size} bytes")
    library = _search()
    if isinstance(library, ToolError):
        return _without_library(data, size, partial)
    buffer = _scratch.buffer
    if buffer is None or len(buffer) < size:
        buffer = _scratch.buffer = ctypes.create_string_buffer(size)
    address = ctypes.addressof(buffer)
    if partial:
        # a match at distance 0 is corrupt, but this call copies what is there: that must not be what came before
        ctypes.memset(address, 0, size)
        got = library.LZ4_decompress_safe_partial(address_of(data), address, len(data), size, size)
    else:
        got = library.LZ4_decompress_safe(address_of(data), address, len(data), size)
    if got != size:
        detail = f"decodes to {got} bytes, not {size}" if got >= 0 else f"is corrupt (wanted {size} bytes)"
        raise FormatError(f"LZ4 block of {len(data)} bytes {detail}")
    return memoryview(buffer).cast("B")[:size]


def _without_library(data: bytes, size: int, partial: bool) -> bytes:
    found = lz4_blocks.decode_start(data, size) if partial else lz4_blocks.decode_all(data, size)
    if found is None or len(found) != size:
        detail = "is corrupt or larger" if found is None else f"decodes to {len(found)} bytes"
        raise FormatError(f"LZ4 block of {len(data)} bytes {detail} (wanted {size} bytes)")
    return found


def _library() -> ctypes.CDLL:
    """Return the C library in the known version. Raises ToolError, with the version to install, if there is none."""
    library = _search()
    if isinstance(library, ToolError):
        raise library
    return library


@cache
def _search() -> ctypes.CDLL | ToolError:
    """Return the first library with everything images need, or what is wrong with the package's."""
    problem = None
    for path in _candidates():
        try:
            return _opened(path)
        except (OSError, AttributeError) as error:
            hint = f"{_HINT}, or LZ4 {VERSION} as a library of the system (on Windows liblz4.dll, in PATH)"
            problem = problem or ToolError(f"the lz4 package lacks what images need: {error}", hint=hint)
        except ToolError as error:
            problem = problem or error
    return problem or ToolError("the lz4 package is not installed", hint=_HINT)


def _candidates() -> Iterator[str]:
    with suppress(ImportError):
        import lz4.block._block as extension

        yield extension.__file__
    yield from system_libraries("lz4")


def _opened(path: str) -> ctypes.CDLL:
    """Raises ToolError for a different version, AttributeError if it does not export all functions needed, OSError."""
    library = ctypes.CDLL(path)
    for name, (result, arguments) in _SYMBOLS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    # a few stores, or a few kilobytes: not worth releasing and reacquiring the GIL
    locked = ctypes.PyDLL(path)
    for name in (*_LOCKED, "LZ4_compress_destSize"):
        function = getattr(locked, name)
        function.restype, function.argtypes = _SYMBOLS[name]
    for name in _LOCKED:
        library.__dict__[name] = getattr(locked, name)
    library.__dict__["LZ4_compress_destSize_locked"] = locked.LZ4_compress_destSize
    major, minor, patch = (int(part) for part in VERSION.split("."))
    if library.LZ4_versionNumber() != major * 10000 + minor * 100 + patch:
        raise ToolError(f"the lz4 package does not contain LZ4 {VERSION}: images would get different bytes", hint=_HINT)
    return library


def _answer(library: ctypes.CDLL, level: int | None, capacity: int, data: bytes) -> tuple[int, str]:
    compressor = FixedOutput(level, capacity, library=library)
    compressor.fill(address_of(data), len(data), 4096)  # the state of an earlier call must not show
    consumed, produced = compressor.fill(address_of(data), len(data))
    return consumed, digest_of(compressor.padded(produced, produced))


def _group(level: int | None) -> int:
    """Group levels by algorithm: the fast form, hash chains, the optimal parser."""
    return 0 if level is None else 1 if level < OPTIMAL else 2


@cache
def _check(group: int) -> None:
    """Raises ToolError if the library's output differs from the known answers. Only levels in use are checked."""
    library, data = _library(), known_input()
    for (level, capacity), answer in _KNOWN_ANSWERS.items():
        if _group(level) == group and _answer(library, level, capacity, data) != answer:
            name = "lz4" if level is None else f"lz4hc,{level}"
            raise ToolError(f"the lz4 package gives different bytes than it should for {name}", hint=_HINT)
