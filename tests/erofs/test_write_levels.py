# SPDX-License-Identifier: Apache-2.0
"""Default levels and pcluster sizes: chosen by the kind of file, whatever its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from writer_check import write, written
from writer_trees import Repeated, file, mixed, noise

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.tree import FileTree

KERNEL, ELF = b"MZ", b"\x7fELF"
HC: dict[str, Any] = {"compression": "lz4hc", "pcluster": 16384}


def records(seed: int) -> bytes:
    """Return bytes that levels 6 to 9 compress differently: many matches of many lengths at many distances."""
    words = [noise(3 + i % 13, seed * 1000 + i) for i in range(97)]
    return b"".join(words[i * i % 97] + words[(i * 7 + i // 50) % 89] for i in range(20_000))


@pytest.fixture(scope="module")
def tree() -> FileTree:
    tree = FileTree()
    tree.add("vmlinuz", file(KERNEL + records(1)))
    tree.add("some-name", file(KERNEL + records(2)))
    tree.add("folder/vmlinuz", file(records(3)))
    tree.add("program", file(ELF + records(4)))
    tree.add("text", file(mixed(90_000)))
    tree.add("tiny", file(KERNEL))
    return tree


def rule(match: str, level: int) -> CompressionRule:
    return CompressionRule(match=match, compression="lz4hc", level=level)


def test_content_decides(tree: FileTree, tmp_path: Path) -> None:
    rules = (rule("/vmlinuz", 8), rule("some-name", 8), rule("tiny", 8))
    chosen = written(tree, tmp_path, **HC)
    assert chosen == written(tree, tmp_path, level=7, rules=rules, **HC)
    others = [written(tree, tmp_path, level=level, **HC) for level in (7, 8, 9)]
    assert len({chosen, *others}) == 4


def test_a_rule_without_a_level_leaves_it_open_too(tree: FileTree, tmp_path: Path) -> None:
    rules = (CompressionRule(match="*", compression="lz4hc"),)
    by_rule = written(tree, tmp_path, compression="lz4", pcluster=16384, rules=rules)
    assert by_rule == written(tree, tmp_path, **HC)


def test_later_pieces_know_how_the_file_starts(tmp_path: Path) -> None:
    tree, unit = FileTree(), records(5)
    size = (16 << 20) + 200_000

    class Started(Repeated):
        def read(self, offset: int, length: int) -> bytes:
            data = super().read(offset, length)
            return KERNEL[offset:] + data[max(0, 2 - offset) :] if offset < 2 else data

    tree.add("large", file(Started(size, unit)))
    chosen = written(tree, tmp_path, **HC)
    assert chosen == written(tree, tmp_path, level=8, **HC)
    assert chosen != written(tree, tmp_path, level=7, **HC)


def test_jobs_and_cache_change_nothing(tree: FileTree, tmp_path: Path) -> None:
    with CompressionCache(tmp_path / "cache") as cache:
        images = [written(tree, tmp_path, cache=cache, jobs=jobs, **HC) for jobs in (1, 8)]
    assert images == [written(tree, tmp_path, **HC)] * 2


@pytest.mark.parametrize(("pcluster", "packed"), [(4096, 16384), (65536, 262144), (1 << 20, 1 << 20)])
def test_packed_pclusters_are_larger(tmp_path: Path, pcluster: int, packed: int) -> None:
    """Four times as large, within the limit of kernels."""
    tree = FileTree()
    for i in range(40):
        tree.add(f"{i}", file(noise(60_000, i) + bytes(100_000)))
    write(tree, tmp_path / "i", compression="lz4", pcluster=pcluster, fragments="all")
    with Image(tmp_path / "i") as image:
        sizes = {e.size for e in image.extents(image.inode(image.superblock.raw.packed_nid))}
    assert max(sizes) == packed


@pytest.mark.parametrize("level", [None, 7, 9, 12])
def test_slow_levels_are_for_whole_blocks(level: int | None, tmp_path: Path) -> None:
    """Data that fits one pcluster is compressed at a faster level if the slower one saves no block."""
    tree = FileTree()
    for i in range(40):
        tree.add(f"{i}", file(records(i)[: 9_000 + 700 * i]))
    tree.add("large", file(records(41)))
    same: dict[str, Any] = {**HC, "level": level}
    wholly, exactly = written(tree, tmp_path, **same), written(tree, tmp_path, exact_level=True, **same)
    assert len(wholly) == len(exactly)
    assert wholly != exactly
    inline = {**same, "ztailpacking": True}  # there bytes count
    assert written(tree, tmp_path, **inline) == written(tree, tmp_path, exact_level=True, **inline)
    quick = {**HC, "level": 6}
    assert written(tree, tmp_path, **quick) == written(tree, tmp_path, exact_level=True, **quick)


def test_device_trees_in_the_packed_inode_get_a_faster_level(tmp_path: Path) -> None:
    trees, texts = FileTree(), FileTree()
    for i in range(20):
        trees.add(f"{i}", file(b"\xd0\x0d\xfe\xed" + records(50 + i)[:50_000]))
        texts.add(f"{i}", file(b"none" + records(50 + i)[:50_000]))
    for content, differs in ((trees, True), (texts, False)):
        packed: dict[str, Any] = {**HC, "fragments": "all", "level": 9, "pcluster": 65536}
        near, exact = (written(content, tmp_path, exact_level=exact, **packed) for exact in (False, True))
        assert (near != exact) is differs
        for _ in ("cold", "warm"):
            with CompressionCache(tmp_path / "cache") as cache:
                assert written(content, tmp_path, cache=cache, **packed) == near


def test_an_old_image_gives_its_blocks_again_at_a_faster_level_too(tree: FileTree, tmp_path: Path) -> None:
    old = tmp_path / "old"
    write(tree, old, level=9, **HC)
    kept = old.read_bytes()
    assert written(tree, tmp_path, level=9, baseline=old, **HC) == kept


def test_the_cache_tells_exact_levels_apart(tree: FileTree, tmp_path: Path) -> None:
    for exact in (True, False, True, False):
        with CompressionCache(tmp_path / "cache") as cache:
            one = written(tree, tmp_path, level=9, exact_level=exact, cache=cache, **HC)
        assert one == written(tree, tmp_path, level=9, exact_level=exact, **HC)
