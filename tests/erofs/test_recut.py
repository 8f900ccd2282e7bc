# SPDX-License-Identifier: Apache-2.0
"""Recutting unchanged data like an older image gives the same cuts again, however the old ones came about."""

from __future__ import annotations

import hashlib
import random
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from treediff import diff
from writer_check import write
from writer_trees import file, noise, text

from erofs_edge.codec.registry import CODECS
from erofs_edge.erofs.anchors import Anchors, OldExtent, unchanged
from erofs_edge.erofs.check import check
from erofs_edge.erofs.compress import Cutter
from erofs_edge.erofs.cut_rules import CutRules, Tails
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.segments import Segment
from erofs_edge.tree import FileTree


class Found(NamedTuple):
    """An extent as it is in an image: raw ones have one block each."""

    old: OldExtent
    stored: bytes


def as_found(segment: Segment, data: bytes, block_size: int) -> list[Found]:
    """Return what the reader says about a segment."""
    found, at = [], 0
    for extent, chunk in zip(segment.extents, segment.chunks, strict=True):
        step = block_size if extent.raw and extent.blocks else extent.length
        for start in range(0, extent.length, step):
            part = data[at + start : at + min(start + step, extent.length)]
            digest = hashlib.sha256(part).digest()
            stored = part if extent.raw else bytes(chunk)
            found.append(Found(OldExtent(at + start, len(part), extent.raw, not extent.blocks, digest), stored))
        at += extent.length
    return found


def cut_after(cutter: Cutter, data: bytes, old: list[Found], tails: Tails) -> list[Found]:
    """Cut `data` like `old`, as far as possible."""
    anchors = unchanged([one.old for one in old], data, 0)
    segment = cutter.recut(data, tails, anchors) if anchors else cutter.cut(data, tails)
    return as_found(segment, data, cutter.rules.block_size)


TEXTS = [text(5000, number) for number in range(20)]


def stretches(rng: random.Random, size: int) -> bytes:
    """Return text, noise, zeros and repetitions."""
    out = bytearray()
    while len(out) < size:
        length, at = rng.choice([50, 300, 1000, 3000, 5000]), rng.randrange(len(out) + 1)
        out += rng.choice([rng.choice(TEXTS)[:length], rng.randbytes(length), bytes(length), out[at : at + length]])
    return bytes(out[:size])


def changed(rng: random.Random, data: bytes) -> bytes:
    """Replace bytes somewhere, or add or remove some at the end."""
    at, length = rng.randrange(len(data)), rng.choice([1, 100, 1000, 4000])
    new = rng.choice([rng.randbytes(length), bytes(length), stretches(rng, length)])
    kind = rng.randrange(3)
    if kind == 0:
        return data + new
    return data[: 1 + at] if kind == 1 else (data[:at] + new + data[at + length :])[: len(data)]


@pytest.mark.parametrize(
    ("name", "level", "trees"),
    [("lz4", None, 120), ("lz4hc", 9, 120), ("zstd", 3, 120), ("deflate", 6, 60), ("lzma", 1, 12)],
)
def test_cutting_again_gives_the_same(name: str, level: int | None, trees: int) -> None:
    dictionary = 65536 if name in ("zstd", "lzma") else 0
    cutters = [
        Cutter(CutRules(CODECS[name], level, 1024, pcluster, dictionary, packed=True))
        for pcluster in (1024, 4096, 16384)
    ]
    for seed in range(trees):
        rng = random.Random(seed)
        cutter, tails = rng.choice(cutters), rng.choice([Tails.BLOCK, Tails.INLINE, Tails.INLINE])
        data, found = stretches(rng, rng.randrange(1, rng.choice([4096, 9000, 30_000]))), []
        for step in count():
            found = cut_after(cutter, data, found, tails)
            assert cut_after(cutter, data, found, tails) == found, (seed, step)
            if step == 2:
                break
            data = changed(rng, data)


@pytest.mark.parametrize(("name", "hard"), [("lz4", 8143), ("zstd", 8165)])
def test_blocks_that_do_not_compress_before_an_inline_end(name: str, hard: int, tmp_path: Path) -> None:
    """The first two are not worth compressing together with what follows; the second would be without the first."""
    tree = FileTree()
    tree.add("a", file(noise(hard, 1) + bytes(12_000 - hard)))
    options: dict[str, Any] = {"compression": name, "pcluster": 65536, "fragments": "all", "ztailpacking": True}
    write(tree, tmp_path / "old", **options)
    write(tree, tmp_path / "new", baseline=tmp_path / "old", **options)
    assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes()


def test_nothing_else_ends_where_an_inline_end_starts() -> None:
    """Otherwise recutting would take it for the whole blocks of a split end."""
    old = Anchors([(0, 100, False), (300, 700, False)], 900, inline=700)
    assert [old.target(at, 128) for at in (0, 200, 299, 300)] == [100, 900, 900, 700]
    assert old.known_end(300) == 700
    assert old.identity != Anchors([(0, 100, False), (300, 700, False)], 900).identity


@pytest.mark.parametrize("ztailpacking", [True, False])
@pytest.mark.parametrize("size", [100, 3000, 4096, 8192])
def test_a_packed_inode_made_anew_keeps_nothing(size: int, ztailpacking: bool, tmp_path: Path) -> None:
    """With the gap that the first file leaves it is compressed, without it flat; their tails differ."""
    tree = FileTree()
    tree.add("a", file(text(5000)))
    tree.add("b", file(noise(size)))
    for number in range(20):
        tree.add(f"neighbour-{number}", file(b""))
    options: dict[str, Any] = {"compression": "lz4", "fragments": "all", "ztailpacking": ztailpacking}
    write(tree, tmp_path / "old", **options)
    tree.remove("a")
    new = write(tree, tmp_path / "new", baseline=tmp_path / "old", compact=True, **options)
    fresh = write(tree, tmp_path / "fresh", **options)
    assert (new.features, new.compressed, new.stored) == (fresh.features, fresh.compressed, fresh.stored)
    with Image(tmp_path / "new") as image:
        assert not diff(image.tree(), tree, owners=False, times=False)
    assert not check(tmp_path / "new").findings
    write(tree, tmp_path / "again", baseline=tmp_path / "new", **options)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()
