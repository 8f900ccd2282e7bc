# SPDX-License-Identifier: Apache-2.0
"""What gains nothing is told without the slow codecs, and images are as if these had been asked about all of it."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from writer_check import write, written
from writer_trees import file, noise, text

from erofs_edge.codec.lz4 import FixedOutput, address_of
from erofs_edge.codec.registry import CODECS, dictionary_for
from erofs_edge.erofs import compress
from erofs_edge.erofs import noise as judge
from erofs_edge.erofs.compress import CutRules, Cutter, Segment, Tails
from erofs_edge.erofs.levels import found_nothing
from erofs_edge.tree import FileTree

PATIENCE = 128 << 10
Part = Callable[[bytearray, random.Random], bytes]


def rules(name: str, level: int | None, pcluster: int) -> CutRules:
    return CutRules(CODECS[name], level, 4096, pcluster, dictionary_for(CODECS[name], None, pcluster))


def again(low: int, high: int, near: int, far: int) -> Part:
    """Bytes that were there before: how many, and how far away."""

    def part(out: bytearray, rng: random.Random) -> bytes:
        length = rng.randrange(low, high)
        start = len(out) - min(rng.randrange(max(length, near), far), len(out))
        return bytes(out[start : start + length])

    return part


def png_in_tar(_: bytearray, rng: random.Random) -> bytes:
    size = rng.randrange(3000, 60_000)
    header = b"icons/%06d.png" % rng.randrange(10**6) + bytes(86) + b"0000644\0%011o\0" % size
    return header.ljust(512, b"\0") + b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + rng.randbytes(size) + bytes(-size % 512)


def code(_: bytearray, rng: random.Random) -> bytes:
    """Like a processor's: few operations, registers and near addresses, far ones that seldom come twice."""
    one = [b"\x48\x8b%c\x24%c", b"\xe8%c\x0f\0\0%c", b"\x0f\xb6%c%c", b"\x41\x89%c%c", b"\xf3\x0f\x10%c%c"]
    return b"".join(
        rng.choice(one) % (rng.randrange(256), rng.randrange(0, 64, 8)) + rng.randbytes(rng.choice([0, 0, 1, 4]))
        for _ in range(rng.randrange(100, 4000))
    )


# name: (what stands between stretches of noise, least and most bytes of these)
HOSTILE: dict[str, tuple[Part, int, int]] = {
    "text": (lambda _, rng: text(rng.randrange(200, 20_000), rng.randrange(99)), 1000, 90_000),
    "little text": (lambda _, rng: text(rng.randrange(100, 900), rng.randrange(99)), 2000, 70_000),
    "a pcluster of text": (lambda _, rng: text(70_000, rng.randrange(99)), 61_440, 61_441),
    "repeats far away": (again(300, 4000, 20_000, 65_536), 5000, 60_000),
    "repeats out of reach": (again(3000, 9000, 65_000, 99_000), 5000, 60_000),
    "short repeats": (again(8, 40, 100, 65_000), 100, 1000),
    "few short repeats": (again(20, 60, 100, 60_000), 2000, 6000),
    "hardly repeats": (again(5, 9, 100, 60_000), 30, 300),
    "runs": (lambda _, rng: rng.randbytes(1) * rng.randrange(20, 1500), 3000, 60_000),
    "periods": (lambda _, rng: rng.randbytes(rng.randrange(1, 40)) * rng.randrange(5, 60), 3000, 60_000),
    "base64": (lambda _, rng: base64.b64encode(rng.randbytes(40_000)), 1000, 90_000),
    "seven bits": (lambda _, rng: bytes(byte & 127 for byte in rng.randbytes(40_000)), 1000, 90_000),
    "pictures": (png_in_tar, 0, 1),
    "code": (code, 1000, 90_000),
    "data in code": (lambda out, rng: b"".join(code(out, rng) for _ in range(5)), 60_000, 300_000),
    "counters": (lambda _, rng: struct.pack("<30000H", *range(rng.randrange(9999), 39_999)[:30_000]), 1000, 90_000),
    "numbers": (lambda _, rng: struct.pack("<15000f", *(rng.gauss(0, 1) for _ in range(15_000))), 1000, 90_000),
    "sound": (lambda _, rng: struct.pack("<9000h", *(int(8e3 * math.sin(i / 50)) for i in range(9000))), 1000, 90_000),
}


def hostile(kind: str, seed: int, size: int) -> bytes:
    """Noise for longer than the judge waits, then that and other things in turn, to the end."""
    part, low, high = HOSTILE[kind]
    rng = random.Random(f"{kind} {seed}")
    out = bytearray(rng.randbytes(PATIENCE + 30_000))
    while len(out) < size:
        out += rng.randbytes(rng.randrange(low, high))
        out += part(out, rng)
        if rng.randrange(4) == 0:
            out += rng.randbytes(PATIENCE + 70_000)  # it was not noise, so the judge waits again
    return bytes(out[:size])


def cut(cutter: Cutter, data: bytes, tails: Tails = Tails.BLOCK) -> tuple[Segment, int, int]:
    """A segment, how many times the codec was asked, and with how many bytes in all."""
    lengths: list[int] = []
    run = cutter._run

    def counted(address: int, length: int, *rest: Any, **more: Any) -> tuple[int, int]:
        lengths.append(length)
        return run(address, length, *rest, **more)

    cutter._run = counted
    cutter._fillers.clear()
    segment = cutter.cut(data, tails)
    return segment, len(lengths), sum(lengths)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: (level, pcluster, PATIENCE) for name, (level, pcluster, _) in judge.SLOW.items()}
    monkeypatch.setattr(judge, "SLOW", quick)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", HOSTILE)
def test_mixed_content_is_cut_as_if_the_codec_were_asked(kind: str) -> None:
    data = hostile(kind, 1, 700_000)
    for pcluster, tails in ((65_536, Tails.BLOCK), (16_384, Tails.FRAGMENT)):
        judged, asked = (Cutter(rules("lz4hc", 9, pcluster)) for _ in range(2))
        asked._patience = len(data)
        (with_it, calls, _), (without, all_calls, _) = cut(judged, data, tails), cut(asked, data, tails)
        assert with_it == without
        assert calls <= all_calls


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("name", "level"), [("zstd", 15), ("deflate", 12), ("lzma", 0)])
@pytest.mark.parametrize("kind", ["text", "base64", "seven bits", "counters", "numbers", "few short repeats"])
def test_codecs_that_code_entropy_too(name: str, level: int, kind: str) -> None:
    data = hostile(kind, 2, 400_000)
    judged, asked = (Cutter(rules(name, level, 65_536)) for _ in range(2))
    asked._patience = len(data)
    assert cut(judged, data)[0] == cut(asked, data)[0]


@pytest.mark.parametrize(
    ("name", "level", "pcluster", "most"),
    [
        ("lz4hc", 9, 65_536, 17 + 3),
        ("lz4hc", 12, 16_384, 86 + 7),
        ("lzma", 0, 65_536, 3 + 3),
        ("lzma", 0, 16_384, 11 + 7),
        ("zstd", 15, 65_536, 27 + 3),
        ("deflate", 12, 65_536, 27 + 3),
    ],
)
def test_the_codec_is_not_asked_about_noise(name: str, level: int, pcluster: int, most: int) -> None:
    """But for the first bytes, and the last that are fewer than what is looked at."""
    data = noise(2_000_000, 3)
    segment, calls, _ = cut(Cutter(rules(name, level, pcluster)), data)
    assert all(extent.raw for extent in segment.extents)
    assert sum(extent.length for extent in segment.extents) == len(data)
    assert calls <= most


def test_where_the_codec_is_as_fast_it_is_asked() -> None:
    fast = [("lz4", None, 65_536), ("lz4hc", 9, 4096), ("zstd", 12, 65_536), ("deflate", 9, 65_536)]
    assert [judge.Noise(*one).patience for one in fast] == [None] * 4
    data = noise(1_500_000, 4)
    assert cut(Cutter(rules("zstd", 3, 65_536)), data)[1] >= len(data) // 65_536


@pytest.mark.parametrize("pcluster", [4096, 16_384, 65_536, 131_072])
def test_behind_noise_calls_get_little_more_than_they_take(pcluster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LZ4HC scans all that it gets; 16 of 4096 bytes it took in vain from 32 KiB."""
    monkeypatch.setattr(judge, "SLOW", {})
    data = noise(1_000_000, 5)
    segment, _, scanned = cut(Cutter(rules("lz4hc", 9, pcluster)), data)
    assert all(extent.raw for extent in segment.extents)
    first = max(compress.CAP_LEAST, 4 * pcluster)
    step = max(pcluster - 4096, 4096)
    assert scanned <= first + 2.5 * pcluster + (len(data) // step + 1) * (pcluster + max(128, pcluster >> 6))


@pytest.mark.parametrize(("size", "calls"), [(5000, 1), (16_384, 1), (65_000, 1), (100_000, 2)])
def test_small_noise_is_tried_at_one_level(size: int, calls: int) -> None:
    segment, asked, _ = cut(Cutter(rules("lz4hc", 9, 65_536)), noise(size, 6))
    assert all(extent.raw for extent in segment.extents)
    assert asked <= calls


def test_next_to_nothing_is_less_than_a_block_may_turn_on() -> None:
    assert found_nothing(65_279, 65_536)
    assert found_nothing(65_280, 65_536)
    assert not found_nothing(65_400, 65_536)
    assert not found_nothing(4097, 4096)


@given(
    st.integers(0, 1 << 32),
    st.sampled_from([4096, 16_384, 65_536]),
    st.integers(0, 60),
    st.integers(4, 200),
)
def test_no_lz4_gains_where_it_is_said_to_gain_nothing(seed: int, pcluster: int, repeats: int, most: int) -> None:
    rng = random.Random(seed)
    out = bytearray(rng.randbytes(500))
    while len(out) < judge.WINDOW:
        if repeats and rng.randrange(judge.WINDOW // 500) < repeats:
            out += again(4, most + 1, 1, 60_000)(out, rng)
        out += rng.randbytes(rng.randrange(1, 1000))
    data = bytes(out[: judge.WINDOW])
    if judge.is_noise(address_of(data), len(data), pcluster, entropy=False):
        for level in (9, 12):
            consumed, produced = FixedOutput(level, pcluster).fill(address_of(data), len(data))
            assert -(-produced // 4096) * 4096 >= consumed


def test_what_noise_is() -> None:
    size = judge.WINDOW
    plain = noise(size, 7)

    def is_noise(data: bytes, *, entropy: bool) -> bool:
        return judge.is_noise(address_of(data), len(data), 65_536, entropy=entropy)

    assert is_noise(plain, entropy=True)
    assert is_noise(noise(3 * size + 500, 8), entropy=True)
    assert not is_noise(plain[:-2000] + plain[100:2100], entropy=False)
    assert not is_noise(plain + plain, entropy=False)  # that far LZ4 reaches
    assert is_noise(bytes(byte & 127 for byte in plain), entropy=False)
    assert not is_noise(bytes(byte & 127 for byte in plain), entropy=True)
    halves = bytes(byte & 127 | (before & 64) << 1 for before, byte in zip(b"\0" + plain, plain, strict=False))
    assert not is_noise(halves, entropy=True)  # all bytes are as frequent; not so behind a given one
    assert not is_noise(plain + bytes(size) + plain, entropy=True)


@pytest.mark.parametrize("fragments", ["none", "tails"])
def test_an_unchanged_tree_gives_the_same_image(fragments: str, tmp_path: Path) -> None:
    tree = FileTree()
    mixed = noise(1_400_000, 9) + text(150_000) + noise(300_001, 10)
    for name, content in (("noise", noise(1_500_000, 11)), ("mixed", mixed), ("small", noise(70_000, 12))):
        tree.add(name, file(content))
    options: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 65_536, "fragments": fragments}
    write(tree, tmp_path / "old", **options)
    old = (tmp_path / "old").read_bytes()
    assert written(tree, tmp_path, baseline=tmp_path / "old", **options) == old
    assert written(tree, tmp_path, jobs=1, **options) == old
