# SPDX-License-Identifier: Apache-2.0
"""Incompressible data is recognised without the slow codecs, and images are no larger than if these were used."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from writer_check import write, written
from writer_trees import file, noise, text

from erofs_edge.codec.lz4 import PIECE, FixedOutput, Repeats, address_of, literals, literals_in
from erofs_edge.codec.registry import CODECS, dictionary_for
from erofs_edge.erofs import compress
from erofs_edge.erofs import noise as judge
from erofs_edge.erofs.compress import Cutter
from erofs_edge.erofs.cut_rules import CutRules, Tails
from erofs_edge.erofs.levels import found_nothing
from erofs_edge.erofs.segments import Segment
from erofs_edge.tree import FileTree

PATIENCE = 128 << 10
Part = Callable[[bytearray, random.Random], bytes]


def rules(name: str, level: int | None, pcluster: int) -> CutRules:
    return CutRules(CODECS[name], level, 4096, pcluster, dictionary_for(CODECS[name], None, pcluster))


def again(low: int, high: int, near: int, far: int) -> Part:
    """Repeat earlier bytes: how many, and at which distance."""

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
    """Return bytes like machine code: few operations, registers and near addresses, far ones that rarely repeat."""
    one = [b"\x48\x8b%c\x24%c", b"\xe8%c\x0f\0\0%c", b"\x0f\xb6%c%c", b"\x41\x89%c%c", b"\xf3\x0f\x10%c%c"]
    return b"".join(
        rng.choice(one) % (rng.randrange(256), rng.randrange(0, 64, 8)) + rng.randbytes(rng.choice([0, 0, 1, 4]))
        for _ in range(rng.randrange(100, 4000))
    )


# name: (what is between stretches of noise, least and most bytes of it)
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
    """Noise for longer than the judge waits, then alternating with other data, to the end."""
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
    """Cut a segment. Return it, how many times the codec was called, and with how many bytes in total."""
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
    quick = {name: (level, PATIENCE) for name, (level, _) in judge.SLOW.items()}
    monkeypatch.setattr(judge, "SLOW", quick)


def without_glances(name: str, level: int, pcluster: int) -> Cutter:
    cutter = Cutter(rules(name, level, pcluster))
    cutter._glances = None
    return cutter


@pytest.mark.parametrize("kind", HOSTILE)
def test_mixed_content_takes_the_blocks_that_the_codec_makes_of_it(kind: str) -> None:
    data = hostile(kind, 1, 700_000)
    for pcluster, tails in ((65_536, Tails.BLOCK), (16_384, Tails.FRAGMENT)):
        seen, calls, _ = cut(Cutter(rules("lz4hc", 9, pcluster)), data, tails)
        asked, all_calls, _ = cut(without_glances("lz4hc", 9, pcluster), data, tails)
        assert sum(extent.length for extent in seen.extents) == len(data)
        assert seen.blocks * 4096 + seen.fragment <= asked.blocks * 4096 + asked.fragment + 4096
        assert calls < all_calls


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
        ("lz4hc", 9, 65_536, 2),
        ("lz4hc", 12, 16_384, 2),
        ("lzma", 0, 65_536, 3 + 3),
        ("lzma", 0, 16_384, 11 + 7),
        ("zstd", 15, 65_536, 27 + 3),
        ("deflate", 12, 65_536, 27 + 3),
    ],
)
def test_the_codec_is_not_asked_about_noise(name: str, level: int, pcluster: int, most: int) -> None:
    """Except for the first bytes, unless it is LZ4HC, and the last ones that are too few to be examined."""
    data = noise(2_000_000, 3)
    segment, calls, _ = cut(Cutter(rules(name, level, pcluster)), data)
    assert all(extent.raw for extent in segment.extents)
    assert sum(extent.length for extent in segment.extents) == len(data)
    assert calls <= most


def test_where_the_codec_is_as_fast_it_is_asked() -> None:
    fast = [("lz4", None, 65_536), ("lz4hc", 9, 4096), ("zstd", 12, 65_536), ("deflate", 9, 65_536)]
    assert [judge.Noise(*one).patience for one in fast] == [None] * 4
    assert [judge.glances_for(name, pcluster, 4096, None) for name, _, pcluster in fast] == [None] * 4
    data = noise(1_500_000, 4)
    assert cut(Cutter(rules("zstd", 3, 65_536)), data)[1] >= len(data) // 65_536


@pytest.mark.parametrize("pcluster", [4096, 16_384, 65_536, 131_072])
def test_behind_noise_calls_get_little_more_than_they_take(pcluster: int) -> None:
    """LZ4HC scans everything that it gets; 16 times it scanned 4096 bytes of 32 KiB in vain."""
    data = noise(1_000_000, 5)
    segment, _, scanned = cut(without_glances("lz4hc", 9, pcluster), data)
    assert all(extent.raw for extent in segment.extents)
    first = max(compress.CAP_LEAST, 4 * pcluster)
    step = max(pcluster - 4096, 4096)
    assert scanned <= first + 2.5 * pcluster + (len(data) // step + 1) * (pcluster + max(128, pcluster >> 6))


@pytest.mark.parametrize(
    ("size", "calls", "otherwise"),
    [(4300, 1, 1), (5000, 0, 1), (16_384, 0, 1), (16_500, 2, 2), (65_536, 1, 1), (100_000, 1, 2), (102_000, 0, 2)],
)
def test_small_noise_is_looked_at_or_tried_at_one_level(size: int, calls: int, otherwise: int) -> None:
    """If a few bytes decide about a block, the codec is called."""
    data = noise(size, 6)
    segment, asked, _ = cut(Cutter(rules("lz4hc", 9, 65_536)), data)
    as_before, always_asked, _ = cut(without_glances("lz4hc", 9, 65_536), data)
    assert all(extent.raw for extent in segment.extents)
    assert segment == as_before
    assert (asked, always_asked) == (calls, otherwise)


def test_ends_that_lie_elsewhere_are_not_told_by_a_glance() -> None:
    data = noise(16_384, 6)
    for tails in (Tails.INLINE, Tails.FRAGMENT):
        with_glances, without = Cutter(rules("lz4hc", 9, 16_384)), without_glances("lz4hc", 9, 16_384)
        assert cut(with_glances, data, tails) == cut(without, data, tails)


def test_next_to_nothing_is_less_than_a_block_may_turn_on() -> None:
    assert found_nothing(65_279, 65_536)
    assert found_nothing(65_280, 65_536)
    assert not found_nothing(65_400, 65_536)
    assert not found_nothing(4097, 4096)


def finds_nothing(data: bytes) -> bool:
    return Repeats(len(data)).finds_nothing(address_of(data), len(data))


@pytest.mark.parametrize("repeats", [0, 5, 20, 60])
def test_where_nothing_is_found_lz4hc_saves_next_to_nothing(repeats: int) -> None:
    found = 0
    for seed in range(12):
        rng = random.Random(f"{repeats} {seed}")
        out = bytearray(rng.randbytes(500))
        while len(out) < judge.WINDOW:
            if rng.randrange(judge.WINDOW // 500) < repeats:
                out += again(4, rng.randrange(6, 200), 1, 60_000)(out, rng)
            out += rng.randbytes(rng.randrange(1, 1000))
        data = bytes(out[: judge.WINDOW])
        found += not finds_nothing(data)
        if finds_nothing(data):
            consumed, produced = FixedOutput(9, 2 * judge.WINDOW).fill(address_of(data), len(data))
            assert literals(consumed) - produced < judge.WINDOW // 100
    assert found == 0 if not repeats else found >= 2


@pytest.mark.parametrize(
    ("distance", "length"), [(300, 200), (4000, 400), (10_000, 800), (30_000, 1500), (50_000, 3000), (60_000, 4000)]
)
def test_what_came_before_is_found(distance: int, length: int) -> None:
    for seed in range(5):
        plain = noise(69_000, seed)
        assert finds_nothing(plain)
        at = len(plain) - length - 50
        came_before = plain[at - distance : at - distance + length]
        assert not finds_nothing(plain[:at] + came_before + plain[at + length :])


def test_what_was_looked_at_before_does_not_matter() -> None:
    one = Repeats(4 * PIECE)
    plain, written_down = noise(3 * PIECE + 77, 14), text(9000)
    places = (plain, written_down, plain, plain[PIECE:], plain[:300], b"a", bytes(PIECE), plain)
    answers = [one.finds_nothing(address_of(data), len(data)) for data in places * 3]
    assert answers == [finds_nothing(data) for data in places] * 3
    assert answers[: len(places)] == [True, False, True, True, True, True, False, True]


@pytest.mark.parametrize("size", [1, 14, 15, 16, 269, 270, 271, 4096, 65_279, 65_280])
def test_how_long_it_is_when_nothing_is_found(size: int) -> None:
    data = noise(size, 15)
    assert FixedOutput(9, 2 * size + 20).fill(address_of(data), size) == (size, literals(size))
    assert literals_in(literals(size)) == size
    assert literals_in(literals(size) - 1) < size


def test_what_noise_is() -> None:
    size = judge.WINDOW
    plain = noise(size, 7)

    def is_noise(data: bytes) -> bool:
        return judge.is_noise(address_of(data), len(data), 65_536)

    assert is_noise(plain)
    assert is_noise(noise(3 * size + 500, 8))
    assert not is_noise(plain[:-2000] + plain[100:2100])
    assert not is_noise(plain + plain)  # that far LZ4 reaches
    assert not is_noise(bytes(byte & 127 for byte in plain))
    halves = bytes(byte & 127 | (before & 64) << 1 for before, byte in zip(b"\0" + plain, plain, strict=False))
    assert not is_noise(halves)  # all bytes are as frequent; not so behind a given one
    assert not is_noise(plain + bytes(size) + plain)


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
