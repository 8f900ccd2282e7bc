# SPDX-License-Identifier: Apache-2.0
"""Zstandard frames, through the `zstandard` wheel, which contains its own library and is imported on first use.

Another release may give different bytes, so the version is pinned and checked with known answers then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from erofs_edge.codec.known import digest_of, known_input
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.outline import Outline
from erofs_edge.codec.search import SearchedOutput, memory
from erofs_edge.errors import FormatError, ToolError

if TYPE_CHECKING:
    from zstandard import ZstdCompressor, ZstdDecompressor

WHEEL, VERSION = "0.25.0", "1.5.7"
LEVEL_MIN, LEVEL_MAX, LEVEL_DEFAULT = 1, 22, 3
WINDOW_LOG_MIN, WINDOW_LOG_MAX = 10, 20  # kernels refuse larger windows (fs/erofs/decompressor_zstd.c)
MATCHED_SIZE = 1 << 18  # input size in bytes for which levels are tuned
OUTLINE_WINDOW_LOG = 17
SLOW, OUTLINE_FACTOR = 5, 0.87  # level from which outlines take much less time than it does; its sizes to theirs

_HINT = f"pip install zstandard=={WHEEL}"

KNOWN_WINDOW_LOG = 17
# level: `digest_of` its frame of all of `known_input`
_KNOWN_ANSWERS: dict[int, str] = {
    1: "c2d5e125d41e900b89728c5bfdb85ad5",
    2: "fc91a31b30142eb31025bc0cad28aa60",
    3: "cf95fdbf10fc98a4f2be09043f2bda2a",
    4: "439203edec455b49ea6a82f63f6b6c38",
    5: "7b62431955d7637a38b47479200d372d",
    6: "1b21de661bb0350126c9cf75e5b1214a",
    7: "26d2773a55847c2e292a8b16cc6cb334",
    8: "13400d97dd835b9e528c9b63fa2eb78e",
    9: "61860acb2899af6f9ea18f6e290dfce9",
    10: "dce338a0fcf0c27479be9856d38cb888",
    11: "dc3d947d0a9fda1ff3556e919f5c9c2c",
    12: "74fc076a2b74549c8aecd74f615449c2",
    13: "6b591c96208047f928a37f09aee5b054",
    14: "3b623ae7e6b878fa469aed9e805fea00",
    15: "50930a0e1018842e38cee26e67101c45",
    16: "e3bc387c30d5a74caa242eda7a5c4ac9",
    17: "e3bc387c30d5a74caa242eda7a5c4ac9",
    18: "b8b81c97a055b9421113cfc320598076",
    19: "b8b81c97a055b9421113cfc320598076",
    20: "b8b81c97a055b9421113cfc320598076",
    21: "b8b81c97a055b9421113cfc320598076",
    22: "b8b81c97a055b9421113cfc320598076",
}


def compressor(level: int, capacity: int, padding: int, window_log: int) -> SearchedOutput:
    """Return a compressor for one thread. Raises ToolError if the wheel is not the known version."""
    _check(level)
    guide = Outlines() if level >= SLOW else None
    return SearchedOutput(_frames(level, window_log), capacity, padding, guide, OUTLINE_FACTOR)


class Outlines:
    """Makes outlines of content with the fastest level. For one thread, one outline at a time. Imports the wheel on
    first use; then raises ToolError if it is not the known version."""

    def __init__(self) -> None:
        self._one: ZstdCompressor | None = None

    def __call__(self, address: int, length: int, capacity: int) -> Outline:
        import zstandard

        if self._one is None:
            _check(LEVEL_MIN)
            self._one = _compressor(LEVEL_MIN, OUTLINE_WINDOW_LOG)
        stream = self._one.compressobj()
        compress, flush, block = stream.compress, stream.flush, zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return Outline(address, length, capacity, lambda piece: len(compress(piece)) + len(flush(block)))


def window_log(pcluster: int) -> int:
    """Return log2 of the window of mkfs.erofs for an image's largest pcluster: 8 times that, at most 1 MiB."""
    return min((8 * pcluster - 1).bit_length(), WINDOW_LOG_MAX)


def _frames(level: int, window_log: int) -> Callable[[int, int], bytes]:
    """Return (address, length) → frame."""
    compress = _compressor(level, window_log).compress
    return lambda address, length: compress(memory(address, length))


def _compressor(level: int, window_log: int) -> ZstdCompressor:
    import zstandard

    # libzstd tunes a level to the input size. The search tries many sizes: with a single tuning, output grows with
    # input, and the one for 256 KiB compresses best
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=MATCHED_SIZE, window_log=window_log, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


@cache
def _check(level: int) -> None:
    """Raises ToolError for a different release, or different output at this level. Only levels in use are checked."""
    import zstandard

    if zstandard.__version__ != WHEEL or tuple(map(int, VERSION.split("."))) != zstandard.ZSTD_VERSION:
        raise ToolError(
            f"the zstandard package does not contain zstd {VERSION}: images would get different bytes", hint=_HINT
        )
    data = known_input()
    if digest_of(_frames(level, KNOWN_WINDOW_LOG)(address_of(data), len(data))) != _KNOWN_ANSWERS[level]:
        raise ToolError(f"the zstandard package gives different bytes than it should for zstd,{level}", hint=_HINT)


class _Decompressors(threading.local):
    one: ZstdDecompressor | None = None


_local = _Decompressors()


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """Decode `size` bytes from one frame; anything after the frame is ignored, as kernels do.

    The frame must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there. Allocates
    `size` bytes and a window of at most 1 MiB, whatever the frame says. Raises FormatError on anything else.
    """
    if size <= 0 or not data:
        raise FormatError(f"zstd frame of {len(data)} bytes cannot hold {size} bytes")
    import zstandard

    one = _local.one
    if one is None:
        one = _local.one = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)
    try:
        if partial:
            with one.stream_reader(data) as reader:
                out = reader.read(size)
        else:
            told = zstandard.get_frame_parameters(data).content_size
            if told not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise FormatError(f"zstd frame of {len(data)} bytes says that it holds {told} bytes, not {size}")
            out = one.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame of {len(data)} bytes is corrupt (wanted {size} bytes): {error}") from error
    if len(out) != size:
        raise FormatError(f"zstd frame of {len(data)} bytes decodes to {len(out)} bytes, not {size}")
    return out
