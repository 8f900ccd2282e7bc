# SPDX-License-Identifier: Apache-2.0
"""Compressors of zstd, deflate and MicroLZMA: fixed output, known answers, threads."""

from __future__ import annotations

import ctypes
import random
import threading
import zlib
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.codec import deflate, lzma, zstd
from erofs_edge.codec.known import known_input
from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.registry import Compressor, dictionary_for, find_codec, open_compressor
from erofs_edge.codec.search import SearchedOutput
from erofs_edge.errors import ToolError, UsageError

MODULES = {"zstd": zstd, "deflate": deflate, "lzma": lzma}
names = pytest.mark.parametrize("name", MODULES)


def sample(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice([b"word %d " % rng.randrange(99), rng.randbytes(9)]) for _ in range(size // 6))[:size]


def opened(name: str, capacity: int, level: int | None = None, padding: int = 4096) -> Compressor:
    codec, level = find_codec(name, level)
    return open_compressor(codec, level, capacity, padding, dictionary_for(codec, None, capacity))


@names
@pytest.mark.parametrize("capacity", [4096, 65536])
def test_fills_its_output_and_comes_back(name: str, capacity: int) -> None:
    data = sample(400_000)
    one = opened(name, capacity)
    consumed, produced = one.fill(address_of(data), len(data))
    assert capacity - max(32, capacity >> 7) <= produced <= capacity < consumed
    padded = one.padded(produced, produced + 77)
    assert padded[:77] == bytes(77)
    assert padded[77]  # readers skip zeros
    assert MODULES[name].decompress(padded[77:], consumed) == data[:consumed]
    for size in (produced - 1, produced + 4097):
        with pytest.raises(ValueError, match="cannot pad"):
            one.padded(produced, size)


@names
@pytest.mark.parametrize("capacity", [8192, 20_000])
def test_a_call_leaves_nothing_behind(name: str, capacity: int) -> None:
    data, other = sample(100_000), sample(100_000, 2)
    one = opened(name, capacity)
    first = one.fill(address_of(data), len(data))
    first_bytes = one.padded(first[1], first[1])
    one.fill(address_of(other), len(other), 1000)
    assert one.fill(address_of(data), len(data)) == first
    assert one.padded(first[1], first[1]) == first_bytes


@names
def test_threads_do_not_disturb_each_other(name: str) -> None:
    data = [sample(60_000, seed) for seed in range(4)]

    def compress(piece: bytes) -> bytes:
        one = opened(name, 8192)
        return bytes(one.padded(*[one.fill(address_of(piece), len(piece))[1]] * 2))

    alone = [compress(piece) for piece in data]
    results: list[list[bytes]] = [[] for _ in data]
    threads = [
        threading.Thread(target=lambda i=i: results[i].extend(compress(data[i]) for _ in range(3))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[one] * 3 for one in alone]


@names
@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 900)), min_size=1, max_size=8),
    capacity=st.integers(600, 9000),
)
def test_round_trip(name: str, parts: list[tuple[bytes, int]], capacity: int) -> None:
    data = b"".join(part * count for part, count in parts)
    one = opened(name, capacity)
    consumed, produced = one.fill(address_of(data), len(data))
    assert 0 < consumed <= len(data) and produced <= capacity
    assert MODULES[name].decompress(one.padded(produced, produced), consumed) == data[:consumed]


@names
def test_input_that_does_not_compress_has_a_fit_too(name: str) -> None:
    data = random.Random(1).randbytes(100_000)
    one = opened(name, 4096)
    consumed, produced = one.fill(address_of(data), len(data))
    assert 3900 < consumed <= produced <= 4096


def test_deflate_never_starts_with_zero() -> None:
    data = random.Random(1).randbytes(60_000) + bytes(300_000)
    one = opened("deflate", 65536, 12)
    consumed, produced = one.fill(address_of(data), len(data))
    stream = bytes(one.padded(produced, produced))
    assert stream[0] == 0x40  # a stored block; were it 0, readers would skip it
    assert deflate.decompress(stream, consumed) == data[:consumed]


def test_a_search_ends_whatever_the_codec_does() -> None:
    calls = []

    def jumpy(_address: int, length: int) -> bytes:
        calls.append(length)
        return bytes(length * 7 // 10 if length % 3 else length)

    assert SearchedOutput(jumpy, 5000).fill(0, 1_000_000)[1] <= 5000
    assert len(calls) < 60
    assert SearchedOutput(lambda _a, _l: bytes(9000), 5000).fill(0, 100_000) == (0, 0)
    assert SearchedOutput(lambda _a, _l: bytes(3), 5000).fill(0, 100_000) == (100_000, 3)


def _forget(module: ModuleType) -> None:
    for known in {"_check", "_library"} & set(vars(module)):
        getattr(module, known).cache_clear()


def _other_than_known(module: ModuleType, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = module._KNOWN_ANSWERS[level]
    other = "0" * 32 if isinstance(answer, str) else (answer[0], "0" * 32)
    monkeypatch.setitem(module._KNOWN_ANSWERS, level, other)
    _forget(module)


@names
def test_other_bytes_of_a_level_fail_loudly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MODULES[name]
    _other_than_known(module, 1, monkeypatch)
    try:
        with pytest.raises(ToolError, match="different bytes") as caught:
            opened(name, 4096, 1)
        assert caught.value.hint == module._HINT
        assert opened(name, 4096, 2)
    finally:
        _forget(module)


@names
def test_each_level_has_its_known_answer(name: str) -> None:
    module = MODULES[name]
    levels = {level for level in range(1, module.LEVEL_MAX + 1) if not 9 < level < 100 or name != "lzma"}
    assert set(module._KNOWN_ANSWERS) - {0} == levels
    for level in levels:
        opened(name, 4096, level)


@names
def test_known_answers_tell_levels_apart(name: str) -> None:
    """The known answers detect a library that searches slightly more or less. Some levels make no difference here."""
    answers = MODULES[name]._KNOWN_ANSWERS
    assert len(set(answers.values())) >= {"zstd": 17, "deflate": 11, "lzma": 9}[name]
    assert len({answers[level] for level in (1, 3, 6)}) == 3


def test_another_zstd_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "VERSION", "1.5.6")
    _forget(zstd)
    try:
        with pytest.raises(ToolError, match=r"zstd 1\.5\.6"):
            opened("zstd", 4096)
    finally:
        _forget(zstd)


def test_a_missing_symbol_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lzma._SYMBOLS, "no_such_function", (ctypes.c_int, []))
    _forget(lzma)
    try:
        with pytest.raises(ToolError, match="no_such_function"):
            opened("lzma", 4096)
    finally:
        _forget(lzma)


@pytest.mark.parametrize("level", [1, 6, 12])
def test_deflate_is_the_same_where_its_library_is_not_exported(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1).randbytes(70_000)
    inputs = [known_input(), noise]

    def streams() -> list[bytes]:
        _forget(deflate)
        compressor = deflate.compressor(level, 4096, 0)
        return [compressor._compress(address_of(data), len(data)) for data in inputs]

    known = streams()
    monkeypatch.setitem(deflate._SYMBOLS, "no_such_function", (ctypes.c_int, []))
    try:
        assert streams() == known and deflate._library() is None
    finally:
        _forget(deflate)
    assert [zlib.decompress(stream, -15) for stream in known] == inputs


def test_names_levels_and_dictionaries() -> None:
    assert [find_codec(name)[1] for name in MODULES] == [3, 6, 6]
    for name, level in (("zstd", 0), ("zstd", 23), ("deflate", 13), ("lzma", 10), ("lzma", 99), ("lzma", 110)):
        with pytest.raises(UsageError, match="no level"):
            find_codec(name, level)
    assert find_codec("lzma", 109)[1] == 109
    sizes = [dictionary_for(find_codec(n)[0], None, p) for n in ("zstd", "lzma") for p in (4096, 65536, 1 << 20)]
    assert sizes == [32768, 1 << 19, 1 << 20, 32768, 1 << 18, 4 << 20]  # as mkfs.erofs 1.9 records them
    assert dictionary_for(find_codec("deflate")[0], 1 << 15, 4096) == dictionary_for(
        find_codec("deflate")[0], None, 4096
    )
    for name, size in (("zstd", 3 << 17), ("zstd", 1 << 21), ("lzma", 1), ("lzma", 9 << 20), ("deflate", 1 << 14)):
        with pytest.raises(UsageError, match="dictionary"):
            dictionary_for(find_codec(name)[0], size, 4096)
