# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.errors import SourceError
from erofs_edge.sources import decompress
from erofs_edge.sources.decompress import codec_of, decompressed, reader

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
MIXED = random.Random(1).randbytes(300_000) + b"text " * 600_000


def run(data: bytes, codec: str) -> bytes:
    return b"".join(decompressed(reader(io.BytesIO(data), len(data)), codec, "input"))


@pytest.mark.parametrize("codec", ENCODERS)
def test_round_trip_of_one_and_of_several_streams(codec: str) -> None:
    encode = ENCODERS[codec]
    packed = encode(MIXED)
    assert codec_of(packed[:6]) == codec
    assert run(packed, codec) == MIXED
    assert run(packed + encode(b"") + encode(b"tail"), codec) == MIXED + b"tail"
    assert run(packed + bytes(8) + encode(b"tail"), codec) == MIXED + b"tail"


@given(st.sampled_from(sorted(ENCODERS)), st.lists(st.binary(max_size=2000), max_size=4), st.integers(1, 700))
def test_any_input_in_any_pieces(codec: str, parts: list[bytes], step: int) -> None:
    packed = io.BytesIO(b"".join(ENCODERS[codec](part) for part in parts))
    assert b"".join(decompressed(lambda n: packed.read(min(n, step)), codec, "x")) == b"".join(parts)


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("keep", [4, 20, -9, -1])
def test_truncated(codec: str, keep: int) -> None:
    with pytest.raises(SourceError, match=f"input: damaged {codec} data"):
        run(ENCODERS[codec](MIXED[:400_000])[:keep], codec)


@pytest.mark.parametrize("codec", ENCODERS)
def test_damaged_in_the_middle(codec: str) -> None:
    packed = bytearray(ENCODERS[codec](MIXED[:400_000]) + b"no stream at all, but long enough")
    with pytest.raises(SourceError, match="damaged"):
        run(bytes(packed), codec)
    if codec != "zst":  # our zstd frames carry no check sum
        packed[150_000] ^= 0x55
        with pytest.raises(SourceError, match="damaged"):
            run(bytes(packed), codec)


@pytest.mark.parametrize("codec", ENCODERS)
def test_a_bomb_is_stopped_early(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "BOMB_FREE", 1 << 20)
    monkeypatch.setattr(decompress, "BOMB_RATIO", 2)
    packed = ENCODERS[codec](bytes(40 << 20))
    made = 0
    with pytest.raises(SourceError, match="decompression bomb"):
        for piece in decompressed(reader(io.BytesIO(packed), len(packed)), codec, "x"):
            made += len(piece)
    assert made < 8 << 20


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(SourceError, match=r"memory|window"):
        run(packer.compress(b"x" * 5000) + packer.flush(), "zst")


def test_a_reader_stops_at_its_size() -> None:
    read = reader(io.BytesIO(b"0123456789"), 7)
    assert [read(5), read(5), read(5)] == [b"01234", b"56", b""]
