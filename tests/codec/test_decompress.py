# SPDX-License-Identifier: Apache-2.0
"""Decompressors of zstd, deflate and MicroLZMA: exact, partial, and bounded for any data."""

from __future__ import annotations

import lzma as xz
import random
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.codec import deflate, lzma, zstd
from erofs_edge.errors import FormatError

Decompress = Callable[..., bytes]


def sample(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice([b"word %d " % rng.randrange(99), rng.randbytes(9)]) for _ in range(size // 6))[:size]


def frame(data: bytes, *, size: bool = False, window_log: int = 18) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log, write_content_size=size)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, 6)[2:-4]


def microlzma(data: bytes) -> bytes:
    """Convert a FORMAT_ALONE stream: after its header of 13 bytes comes a 0, which the properties replace."""
    alone = xz.compress(data, xz.FORMAT_ALONE, preset=6)
    return bytes([alone[0] ^ 0xFF]) + alone[14:]


CODECS: dict[str, tuple[Callable[[bytes], bytes], Decompress]] = {
    "zstd": (frame, zstd.decompress),
    "zstd-sized": (lambda data: frame(data, size=True), zstd.decompress),
    "deflate": (raw_deflate, deflate.decompress),
    "lzma": (microlzma, lzma.decompress),
}
codecs = pytest.mark.parametrize(("compress", "decompress"), CODECS.values(), ids=CODECS)


@codecs
def test_exact_unless_partial(compress: Callable[[bytes], bytes], decompress: Decompress) -> None:
    data = sample(50_000)
    stream = compress(data)
    assert decompress(stream, 50_000) == data
    assert decompress(stream, 50_000, partial=True) == data
    for size in (1, 1234, 49_999):
        assert decompress(stream, size, partial=True) == data[:size]
    for size, partial in ((49_999, False), (50_001, False), (50_001, True), (0, False), (-1, True), (1 << 22, False)):
        with pytest.raises(FormatError):
            decompress(stream, size, partial=partial)


@codecs
def test_cut_and_broken_streams(compress: Callable[[bytes], bytes], decompress: Decompress) -> None:
    data = sample(50_000)
    stream = compress(data)
    for length in (0, 1, 2, 5, len(stream) // 2, len(stream) - 20):
        with pytest.raises(FormatError):
            decompress(stream[:length], 50_000)
    rng = random.Random(1)
    for _ in range(100):
        broken = bytearray(stream)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        with suppress(FormatError):
            assert len(decompress(bytes(broken), 50_000)) == 50_000


@codecs
@pytest.mark.parametrize("partial", [False, True])
def test_bombs_are_bounded(compress: Callable[[bytes], bytes], decompress: Decompress, partial: bool) -> None:
    bomb = compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with suppress(FormatError):
            assert decompress(bomb, 10_000, partial=partial) == bytes(10_000)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@codecs
def test_what_follows_is_ignored_as_by_kernels(compress: Callable[[bytes], bytes], decompress: Decompress) -> None:
    stream = compress(sample(9000)) + b"more"
    if decompress is lzma.decompress:  # has no end of its own: kernels refuse it (found with fsck.erofs)
        with pytest.raises(FormatError, match="ends 4 bytes before"):
            decompress(stream, 9000)
        assert decompress(stream, 9000, partial=True) == sample(9000)
        return
    assert decompress(stream, 9000) == sample(9000)


def test_zstd_windows_are_bounded() -> None:
    data = bytes(5 << 20)
    assert zstd.decompress(frame(data, window_log=20), len(data)) == data
    with pytest.raises(FormatError, match="corrupt"):
        zstd.decompress(frame(data, window_log=22), len(data))
    # 0x1234 as the window descriptor: 4 GiB and more
    with pytest.raises(FormatError):
        zstd.decompress(b"\x28\xb5\x2f\xfd\x00\xf8\x01\0\0", 1)


@codecs
@settings(deadline=None)
@given(block=st.binary(min_size=1, max_size=300), size=st.integers(1, 5000), partial=st.booleans())
def test_survives_anything(
    compress: Callable[[bytes], bytes], decompress: Decompress, block: bytes, size: int, partial: bool
) -> None:
    with suppress(FormatError):
        assert len(decompress(block, size, partial=partial)) == size
    with suppress(FormatError):
        assert len(decompress(compress(block)[: size % 97] + block, size, partial=partial)) == size


@codecs
@settings(deadline=None)
@given(data=st.binary(min_size=1, max_size=3000))
def test_round_trip(compress: Callable[[bytes], bytes], decompress: Decompress, data: bytes) -> None:
    assert decompress(compress(data), len(data)) == data
