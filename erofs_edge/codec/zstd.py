# SPDX-License-Identifier: Apache-2.0
"""Zstandard frames, by the `zstandard` wheel."""

from __future__ import annotations

import threading

import zstandard

from erofs_edge.errors import FormatError

WINDOW_LOG_MAX = 20  # kernels refuse larger windows (fs/erofs/decompressor_zstd.c)


class _Decompressors(threading.local):
    def __init__(self) -> None:
        self.one = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG_MAX)


_local = _Decompressors()


def decompress(data: bytes, size: int, *, partial: bool = False) -> bytes:
    """`size` bytes out of one frame; what follows the frame is ignored, as kernels do.

    The frame must decode to exactly `size` bytes; with `partial` it may hold more, and decoding stops there.
    Allocates `size` bytes and a window of at most 1 MiB, whatever the frame says. Raises FormatError on anything else.
    """
    if size <= 0 or not data:
        raise FormatError(f"zstd frame of {len(data)} bytes cannot hold {size} bytes")
    try:
        if partial:
            with _local.one.stream_reader(data) as reader:
                out = reader.read(size)
        else:
            told = zstandard.get_frame_parameters(data).content_size
            if told not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise FormatError(f"zstd frame of {len(data)} bytes tells of {told} bytes, not {size}")
            out = _local.one.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame of {len(data)} bytes is corrupt (wanted {size} bytes): {error}") from error
    if len(out) != size:
        raise FormatError(f"zstd frame of {len(data)} bytes decodes to {len(out)} bytes, not {size}")
    return out
