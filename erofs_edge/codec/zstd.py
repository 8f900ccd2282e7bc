# SPDX-License-Identifier: Apache-2.0
"""Zstandard frames, by the `zstandard` wheel, which carries its own library and is loaded at first use.

Another release may emit other bytes, so the version is pinned and checked with known answers then.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from typing import TYPE_CHECKING

from erofs_edge.codec.known import known_input
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.search import SearchedOutput, memory
from erofs_edge.errors import FormatError, ToolError

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

WHEEL, VERSION = "0.25.0", "1.5.7"
LEVEL_MIN, LEVEL_MAX, LEVEL_DEFAULT = 1, 22, 3
WINDOW_LOG_MIN, WINDOW_LOG_MAX = 10, 20  # kernels refuse larger windows (fs/erofs/decompressor_zstd.c)
MATCHED_SIZE = 1 << 18  # bytes of input that levels stand for

_HINT = f"pip install zstandard=={WHEEL}"

# (level, output size): (bytes consumed, first half of the output's sha256) for `known_input`
_KNOWN_ANSWERS: dict[tuple[int, int], tuple[int, str]] = {
    (3, 4096): (13530, "1ff55a61293289397fb2a8663412af52"),
    (3, 16384): (84763, "1b6d0f5ede4e51b46977b230829bbef3"),
    (9, 4096): (13800, "bf01a3b42ffcf87308869060dd9870be"),
    (9, 16384): (87394, "5106bd573aed43d88a5ce6620bb306ea"),
    (19, 4096): (14318, "45708bdf473586ba89b192103f8d28a4"),
}


def compressor(level: int, capacity: int, padding: int, window_log: int) -> SearchedOutput:
    """A compressor for one thread. Raises ToolError when the wheel is not the one we know."""
    _check()
    return _open(level, capacity, padding, window_log)


def window_log(pcluster: int) -> int:
    """What mkfs.erofs takes for the largest pcluster of an image: 8 times that, at most 1 MiB."""
    return min((8 * pcluster - 1).bit_length(), WINDOW_LOG_MAX)


def _open(level: int, capacity: int, padding: int, window_log: int) -> SearchedOutput:
    import zstandard

    # libzstd tunes a level to the size of the input. The search tries many sizes: with one tuning for all, the output
    # grows with the input, and the one for 256 KiB compresses best
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=MATCHED_SIZE, window_log=window_log, write_content_size=False
    )
    compress = zstandard.ZstdCompressor(compression_params=parameters).compress
    return SearchedOutput(lambda address, length: compress(memory(address, length)), capacity, padding)


@cache
def _check() -> None:
    import zstandard

    if zstandard.__version__ != WHEEL or tuple(map(int, VERSION.split("."))) != zstandard.ZSTD_VERSION:
        raise ToolError(
            f"the zstandard package does not carry zstd {VERSION}: images would get other bytes", hint=_HINT
        )
    for (level, capacity), answer in _KNOWN_ANSWERS.items():
        if _answer(level, capacity) != answer:
            raise ToolError(f"the zstandard package gives other bytes than known for zstd,{level}", hint=_HINT)


def _answer(level: int, capacity: int) -> tuple[int, str]:
    data = known_input()
    consumed, produced = (one := _open(level, capacity, 0, window_log(capacity))).fill(address_of(data), len(data))
    return consumed, hashlib.sha256(one.padded(produced, produced)).hexdigest()[:32]


class _Decompressors(threading.local):
    one: ZstdDecompressor | None = None


_local = _Decompressors()


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """`size` bytes out of one frame; what follows the frame is ignored, as kernels do.

    The frame must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there.
    Allocates `size` bytes and a window of at most 1 MiB, whatever the frame says. Raises FormatError on anything else.
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
                raise FormatError(f"zstd frame of {len(data)} bytes tells of {told} bytes, not {size}")
            out = one.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame of {len(data)} bytes is corrupt (wanted {size} bytes): {error}") from error
    if len(out) != size:
        raise FormatError(f"zstd frame of {len(data)} bytes decodes to {len(out)} bytes, not {size}")
    return out
