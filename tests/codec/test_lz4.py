# SPDX-License-Identifier: Apache-2.0
"""LZ4 through ctypes: fixed output, padding, known answers, bounded decompression."""

from __future__ import annotations

import ctypes
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.codec import lz4, lz4_blocks
from erofs_edge.codec.registry import find_codec, open_compressor
from erofs_edge.errors import FormatError, ToolError, UsageError


def sample(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice([b"word %d " % rng.randrange(99), rng.randbytes(9)]) for _ in range(size // 6))[:size]


@pytest.fixture
def fresh_library() -> object:
    for known in (lz4._search, lz4._check):
        known.cache_clear()
    yield
    for known in (lz4._search, lz4._check):
        known.cache_clear()


@pytest.mark.parametrize("level", [None, 1, 3, 9, 10, 12])
@pytest.mark.parametrize("capacity", [64, 4096, 65536])
def test_fills_its_output_and_comes_back(level: int | None, capacity: int) -> None:
    data = sample(300_000)
    compressor = lz4.FixedOutput(level, capacity, 4096)
    consumed, produced = compressor.fill(lz4.address_of(data), len(data))
    assert capacity - 16 <= produced <= capacity < consumed
    block = bytes(compressor.padded(produced, produced + 77))
    assert block[:77] == bytes(77)
    assert lz4.decompress(block[77:], consumed) == data[:consumed]


@pytest.mark.parametrize("level", [3, 9, 12])
def test_reset_stream_gives_the_bytes_of_the_plain_call(level: int) -> None:
    library = lz4._library()
    plain = library.LZ4_compress_HC_destSize
    plain.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int] * 2
    state = ctypes.create_string_buffer(library.LZ4_sizeofStateHC())
    compressor = lz4.FixedOutput(level, 16384)
    for seed in range(6):
        data = sample(200_000 >> seed, seed)
        output, length = ctypes.create_string_buffer(16384), ctypes.c_int(len(data))
        count = plain(ctypes.addressof(state), lz4.address_of(data), output, ctypes.addressof(length), 16384, level)
        assert compressor.fill(lz4.address_of(data), len(data)) == (length.value, count)
        assert compressor.padded(count, count) == output.raw[:count]


def test_padding_has_its_bounds() -> None:
    compressor = lz4.FixedOutput(9, 4096, 10)
    _, produced = compressor.fill(lz4.address_of(b"a" * 100), 100)
    assert len(compressor.padded(produced, produced + 10)) == produced + 10
    for size in (produced - 1, produced + 11):
        with pytest.raises(ValueError, match="cannot pad"):
            compressor.padded(produced, size)


@pytest.mark.parametrize("level", [None, 9])
def test_outputs_stay_as_they_are(level: int | None) -> None:
    """Also outside the memory that several outputs share, and with calls in between whose results are discarded."""
    compressor = lz4.FixedOutput(level, 4096, 512)
    kept = []
    for seed in range(3 * lz4.GROUND // 4096):
        data = sample(9000, seed)
        compressor.fill(lz4.address_of(data), len(data))
        consumed, produced = compressor.fill(lz4.address_of(data), 5000)
        kept.append((data[:consumed], compressor.padded(produced, produced + seed % 500), seed % 500))
    for data, block, zeros in kept:
        assert block[:zeros] == bytes(zeros)
        assert lz4.decompress(bytes(block[zeros:]), len(data)) == data


def test_threads_do_not_disturb_each_other() -> None:
    data = [sample(150_000, seed) for seed in range(4)]
    alone = [_compress(d) for d in data]
    results: list[list[bytes]] = [[] for _ in data]

    def work(i: int) -> None:
        results[i] = [_compress(data[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[one] * 5 for one in alone]


def _compress(data: bytes) -> bytes:
    compressor = lz4.FixedOutput(9, 8192)
    return bytes(compressor.padded(*[compressor.fill(lz4.address_of(data), len(data))[1]] * 2))


@pytest.mark.parametrize(
    ("wrong", "refused", "taken"), [(None, (None,), (9, 12)), (9, (1, 9, 12), (None,)), (12, (10, 12), (None, 9))]
)
def test_other_bytes_fail_loudly(
    monkeypatch: pytest.MonkeyPatch,
    fresh_library: None,
    wrong: int | None,
    refused: tuple[int | None, ...],
    taken: tuple[int | None, ...],
) -> None:
    key = (wrong, 16384)
    monkeypatch.setitem(lz4._KNOWN_ANSWERS, key, (lz4._KNOWN_ANSWERS[key][0], "0" * 32))
    for level in taken:
        lz4.FixedOutput(level, 4096)
    for level in refused:
        with pytest.raises(ToolError, match="different bytes") as caught:
            lz4.FixedOutput(level, 4096)
        assert caught.value.hint == "pip install lz4==4.4.5"


def test_another_version_fails_loudly(monkeypatch: pytest.MonkeyPatch, fresh_library: None) -> None:
    monkeypatch.setattr(lz4, "VERSION", "1.10.0")
    with pytest.raises(ToolError, match=r"LZ4 1\.10\.0"):
        lz4.FixedOutput(None, 4096)


def test_a_missing_symbol_fails_loudly(monkeypatch: pytest.MonkeyPatch, fresh_library: None) -> None:
    monkeypatch.setitem(lz4._SYMBOLS, "LZ4_compress_no_such", (ctypes.c_int, []))
    with pytest.raises(ToolError, match="LZ4_compress_no_such"):
        lz4.FixedOutput(None, 4096)


def block_of(data: bytes, level: int | None = 9) -> bytes:
    compressor = lz4.FixedOutput(level, len(data) + 1000)
    consumed, produced = compressor.fill(lz4.address_of(data), len(data))
    assert consumed == len(data)
    return bytes(compressor.padded(produced, produced))


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, fresh_library: None) -> None:
    monkeypatch.setitem(lz4._SYMBOLS, "LZ4_compress_no_such", (ctypes.c_int, []))


CONTENTS = [sample(50_000), b"a" * 9000, b"abc" * 3000, random.Random(2).randbytes(5000), b"x", bytes(300) + b"end"]
BLOCKS = [(data, block_of(data, level)) for data in CONTENTS for level in (None, 12)]


@pytest.mark.parametrize(("data", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_are_decoded_without_the_library(data: bytes, block: bytes, without_library: None) -> None:
    assert lz4.decompress(block, len(data)) == data
    for size in {1, len(data) // 3 + 1, max(1, len(data) - 1), len(data)}:
        assert lz4.decompress(block, size, partial=True) == data[:size]
    for size, partial in ((len(data) + 1, False), (len(data) + 1, True), (max(1, len(data) - 1), False)):
        with suppress(FormatError) if size == len(data) else pytest.raises(FormatError):
            lz4.decompress(block, size, partial=partial)


@settings(max_examples=200, deadline=None)
@given(block=st.binary(min_size=1, max_size=60), size=st.integers(1, 400))
def test_hostile_blocks_are_bounded_without_the_library(block: bytes, size: int) -> None:
    found = lz4_blocks.decode_start(block, size)
    assert found is None or len(found) == size
    with suppress(FormatError):
        assert found in (None, lz4.decompress(block, size, partial=True))


def test_decompress_is_exact_unless_partial() -> None:
    data = sample(50_000)
    compressor = lz4.FixedOutput(9, 65536)
    consumed, produced = compressor.fill(lz4.address_of(data), len(data))
    block = bytes(compressor.padded(produced, produced))
    assert consumed == len(data)
    assert lz4.decompress(block, 50_000) == data
    assert lz4.decompress(block, 1234, partial=True) == data[:1234]
    for size, partial in ((49_999, False), (50_001, False), (50_001, True), (0, False), (-1, True)):
        with pytest.raises(FormatError):
            lz4.decompress(block, size, partial=partial)
    with pytest.raises(FormatError):
        lz4.decompress(block[:-1], 50_000)
    with pytest.raises(FormatError):
        lz4.decompress(b"", 1)
    with pytest.raises(FormatError, match="cannot hold"):
        lz4.decompress(block, 1 << 40)


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("length", [1, 4, 16, 30, 200])
def test_a_match_at_distance_zero_shows_nothing_of_earlier_blocks(length: int, partial: bool) -> None:
    """Found by tools/fuzz-erofs-peer: the library copies whatever the memory contained."""
    block = b"\x0f\0\0" + bytes([length]) + b"\x50" + b"abcde"
    size = length if partial else length + 24
    found = []
    for earlier in (b"a", b"b"):
        data = earlier * 9000
        lz4.decompress(block_of(data, None), len(data))
        found.append(lz4.decompress(block, size, partial=partial))
    assert found[0] == found[1]


@given(st.binary(min_size=1, max_size=300), st.integers(1, 5000), st.booleans())
def test_decompress_survives_anything(block: bytes, size: int, partial: bool) -> None:
    with suppress(FormatError):
        assert len(lz4.decompress(block, size, partial=partial)) == size


def test_names_and_levels() -> None:
    assert find_codec("lz4hc")[1] == 7
    assert find_codec("lz4hc", 12)[1] == 12
    assert find_codec("lz4")[1] is None
    for name, level in (("zlib", None), ("lz4", 1), ("lz4hc", 0), ("lz4hc", 13)):
        with pytest.raises(UsageError):
            find_codec(name, level)


def test_fast_and_high_differ() -> None:
    data = sample(100_000)
    fast, high = (
        open_compressor(*find_codec(name), 8192, 0).fill(lz4.address_of(data), len(data)) for name in ("lz4", "lz4hc")
    )
    assert fast[0] < high[0]


def test_a_call_of_another_level_leaves_nothing_behind() -> None:
    data = sample(200_000)
    plain = {level: lz4.FixedOutput(level, 16384) for level in (3, 5, 9, 12)}
    compressor = lz4.FixedOutput(9, 16384)
    for level in (9, 5, 12, 5, 9, 3, 12, 9):
        expected = plain[level].fill(lz4.address_of(data), len(data))
        assert compressor.fill(lz4.address_of(data), len(data), level=level) == expected
        produced = expected[1]
        assert compressor.padded(produced, produced) == plain[level].padded(produced, produced)


def test_memory_is_used_again_after_a_restart_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lz4, "GROUND", 20_000)
    data = sample(900_000)
    compressor = lz4.FixedOutput(None, 4096, 4096)

    def outputs() -> list[memoryview]:
        found, at = [], 0
        while at < len(data):
            consumed, produced = compressor.fill(lz4.address_of(data) + at, len(data) - at)
            found.append(compressor.padded(produced, 4096))
            at += consumed
        return found

    def grounds(views: list[memoryview]) -> set[int]:
        return {id(view.obj) for view in views}

    first = outputs()
    kept = [bytes(view) for view in first]
    again = outputs()
    assert [bytes(view) for view in first] == kept == [bytes(view) for view in again]
    assert len(grounds(first)) > 5
    compressor.restart()
    second = outputs()
    assert [bytes(view) for view in second] == kept
    compressor.restart()
    third = outputs()
    assert [bytes(view) for view in third] == kept and grounds(third) == grounds(second)
