# SPDX-License-Identifier: Apache-2.0
"""Compressing files before the tree is complete changes only when the work is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from writer_trees import mixed, noise, text

from erofs_edge.erofs import ahead, pipeline
from erofs_edge.erofs.ahead import HeadStart
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.piece import Piece
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.errors import SourceError
from erofs_edge.sources.directory import scan
from erofs_edge.sources.rewrite import split_hard_links
from erofs_edge.tree import BytesContent, FileContent, FileTree

SMALL = 20_000  # bytes that count as large here


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of all kinds, around the size from which on they are started early, and one larger than a piece."""
    monkeypatch.setattr(ahead, "LARGE", SMALL)
    monkeypatch.setattr(pipeline, "BATCH", 100_000)
    top = tmp_path / "tree"
    for name in ("a", "b/c", "z"):
        (top / name).mkdir(parents=True)
    for i, data in enumerate(
        (
            text(300_001, 1),
            mixed(200_003, 2),
            noise(90_000, 3),
            b"\x1f\x8b\x08" + noise(70_001, 4),
            b"\xd0\x0d\xfe\xed" + text(60_000, 5),
            mixed(SMALL - 1, 6),
            mixed(SMALL, 7),
            bytes(50_000),
            text(700, 8),
        )
    ):
        (top / ("a", "b/c", "z")[i % 3] / f"f{i}").write_bytes(data)
    (top / "z/equal").write_bytes(text(300_001, 1))
    (top / "z/large").write_bytes((text(30_000, 9) * 560)[:PIECE] + mixed(123_457, 10))
    os.link(top / "a/f0", top / "z/link")
    os.link(top / "z/f8", top / "z/short")
    return top


def built(folder: Path, out: Path, *, early: bool, split: bool = False, **options: Any) -> bytes:
    chosen = WriteOptions(**{"compression": "lz4hc", "level": 3, "pcluster": 16384, **options})

    def tree(found: Any = None) -> FileTree:
        result = scan(folder, found)
        if split:
            split_hard_links(result)
        return result

    if not early:
        write_image(tree(), out, chosen)
        return out.read_bytes()
    with HeadStart(chosen) as start:
        content = tree(start.offer)
        write_image(content, out, WriteOptions(**{**_values(chosen), "ahead": start}))
    return out.read_bytes()


def _values(options: WriteOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in WriteOptions.__annotations__}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jobs": 1},
        {"jobs": 8, "compression": "lz4", "level": None, "pcluster": 65536},
        {"level": None, "pcluster": 65536},
        {"ztailpacking": True},
        {"fragments": "tails"},
        {"fragments": "all"},
        {"fragments": "all", "dedupe": True},
        {"dedupe": True},
        {"compression": "zstd", "level": 1},
        {"rules": (CompressionRule(match="*/f1", compression="none"),)},
        {"compression": "none", "level": None, "pcluster": None},
        {"profile": (b"/z/large", b"/a/f0")},
        {"split": True, "compression": "lz4", "level": None},
    ],
    ids=str,
)
def test_bytes_are_the_same(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    late = built(folder, tmp_path / "late", early=False, **options)
    assert built(folder, tmp_path / "early", early=True, **options) == late


def test_with_a_cache_and_a_baseline(folder: Path, tmp_path: Path) -> None:
    late = built(folder, tmp_path / "late", early=False)
    for _ in range(2):
        with CompressionCache(tmp_path / "cache") as cache:
            assert built(folder, tmp_path / "early", early=True, cache=cache) == late
    assert cache.misses == 0
    assert built(folder, tmp_path / "same", early=True, baseline=tmp_path / "late") == late


def piece_of(content: FileContent, offset: int = 0) -> Piece:
    tree = scan(Path(content.path).parent)
    inode = tree.root.children[os.fsencode(Path(content.path).name)]
    inode.content = content
    length = min(PIECE, content.size - offset)
    return Piece(Node(inode, b"/x", 7, None, size=content.size), offset, length)


def test_what_is_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files of the host, one of each size, until there is enough; each piece is handed out once."""
    monkeypatch.setattr(ahead, "may_fork", lambda: False)
    one = FileContent(str(folder / "a/f0"), 300_001)
    large = FileContent(str(folder / "z/large"), PIECE + 123_457)
    with HeadStart(WriteOptions(pcluster=16384)) as start:
        start.offer(FileContent(str(folder / "z/f5"), SMALL - 1))
        start.offer(BytesContent(bytes(SMALL)))
        start.offer(FileContent(str(folder / "a/f3"), 30_000, start=3))
        assert not start._started
        start.offer(large)
        start.offer(one)
        start.offer(FileContent(str(folder / "z/equal"), 300_001))
        start.offer(FileContent(str(folder / "z/large"), 17 << 20))  # more than is left
        assert [content for content, _ in start._started.values()] == [large, one]
        for offset in (0, PIECE):
            piece = piece_of(large, offset)
            stored = start.take(piece)
            assert stored is not None and stored.piece is piece and stored.segment is not None
            assert sum(extent.length for extent in stored.segment.extents) == piece.length
            assert start.take(piece) is None
        assert start.take(piece_of(FileContent(one.path, one.size))) is None  # equal, but not the one that was offered


def test_a_file_that_changes_is_named(folder: Path, tmp_path: Path) -> None:
    options = WriteOptions(pcluster=16384)
    with HeadStart(options) as start:
        content = FileContent(str(folder / "a/f0"), 300_002)  # a byte more than there is
        start.offer(content)
        assert start.take(piece_of(content)) is None
    tree = scan(folder)
    tree.root.children[b"a"].children[b"f0"].content = content
    with HeadStart(options) as start:
        start.offer(content)
        with pytest.raises(SourceError, match="changed its size") as caught:
            write_image(tree, tmp_path / "out", WriteOptions(**{**_values(options), "ahead": start}))
    assert caught.value.where == "/a/f0"
    assert not (tmp_path / "out").exists()


def test_scan_tells_of_every_file(folder: Path) -> None:
    found: list[Any] = []
    tree = scan(folder, found.append)
    names = [inode.content for _, inode in tree.walk() if inode.content is not None]
    assert sorted(map(id, found)) == sorted(map(id, names))
