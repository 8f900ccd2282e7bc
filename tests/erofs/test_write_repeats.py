# SPDX-License-Identifier: Apache-2.0
"""Files that refer to the compressed data of others for equal bytes, at any offset."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing_check import everyone_agrees, ours_agree
from writer_check import kernel_differences, write, written
from writer_trees import file, mixed, noise, text

from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.ondisk import INCOMPAT_DEDUPE, LAYOUT_COMPRESSED_COMPACT, LAYOUT_COMPRESSED_FULL
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]
HC: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 16384}


def prose(size: int, seed: int) -> bytes:
    """Return bytes that compress to about half and have no long repetitions."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(4, 12)) for _ in range(700)]
    return b"".join(rng.choice(words) + b"%d" % rng.randrange(9) for _ in range(size // 6))[:size]


def tree_of(*contents: bytes) -> FileTree:
    tree = FileTree()
    for i, content in enumerate(contents):
        tree.add(f"{i:03d}", file(content))
    return tree


def addresses(image: Image, path: str) -> list[int]:
    return [e.address for e in image.extents(image.lookup(path)) if not e.inline]


COMMON = prose(400_000, 1)


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 12_345, 70_001])
@pytest.mark.parametrize("options", [HC, {"compression": "lz4"}, {**HC, "pcluster": 65536}], ids=str)
def test_found_at_any_offset(
    needs_root: None, oracle: Oracle, tmp_path: Path, offset: int, options: dict[str, Any]
) -> None:
    tree = tree_of(prose(50_000, 2) + COMMON + prose(9_000, 3), prose(offset, 4) + COMMON + prose(30_001, 5))
    plain = write(tree, tmp_path / "plain", **options)
    info = write(tree, image := tmp_path / "i", dedupe=True, **options)
    assert info.repeats > 0 and info.repeated > 350_000
    assert plain.data_blocks - info.data_blocks > 35
    assert info.minimum_kernel == (6, 1)
    assert everyone_agrees(oracle, image, tree) == []
    with Image(image) as read:
        assert read.superblock.raw.feature_incompat & INCOMPAT_DEDUPE
        assert len(set(addresses(read, "000")) & set(addresses(read, "001"))) >= 3
        layouts = [read.inode(read.lookup(name).nid).layout for name in ("000", "001")]
    assert layouts == [LAYOUT_COMPRESSED_COMPACT, LAYOUT_COMPRESSED_FULL]


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("cut", [30_000, 200_000, 380_001])
def test_a_part_of_a_pcluster(needs_root: None, oracle: Oracle, tmp_path: Path, cut: int) -> None:
    """The last referenced extent decodes to more than is needed."""
    tree = tree_of(COMMON, COMMON[:cut] + noise(20_000, 1), COMMON[:cut])
    info = write(tree, image := tmp_path / "i", dedupe=True, **HC)
    assert info.repeats > 1
    assert everyone_agrees(oracle, image, tree) == []
    with Image(image) as read:
        assert any(e.partial for e in read.extents(read.lookup("001")))


@pytest.mark.root
@pytest.mark.oracle
def test_chains_and_files_that_repeat_themselves(needs_root: None, oracle: Oracle, tmp_path: Path) -> None:
    a, b, c = (prose(150_000, i) for i in range(3))
    tree = tree_of(a + b, b + c, c + a, a + prose(5000, 9) + a, noise(30_000) + c + noise(50_001, 3) + b)
    plain = write(tree, tmp_path / "plain", **HC)
    info = write(tree, image := tmp_path / "i", dedupe=True, **HC)
    assert info.repeats >= 6 and info.data_blocks < 0.6 * plain.data_blocks
    assert everyone_agrees(oracle, image, tree) == []


@pytest.mark.root
@pytest.mark.oracle
def test_across_segments_of_large_files(needs_root: None, oracle: Oracle, tmp_path: Path) -> None:
    unit, border = prose(300_000, 7), 16 << 20
    fill = text(50_000) * 340
    first = fill[: border - 150_000] + unit + fill[:100_000]
    second = prose(77, 3) + fill[: border - 200_000] + unit
    tree = tree_of(first, second, unit + noise(10))
    info = write(tree, image := tmp_path / "i", dedupe=True, compression="lz4", pcluster=65536)
    assert info.repeats > 2
    assert everyone_agrees(oracle, image, tree) == []


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"ztailpacking": True},
        {"fragments": "tails"},
        {"full_index": True},
        {"block_size": 1024, "pcluster": 8192},
        {"inode_form": "extended", "inline_tails": False},
    ],
    ids=str,
)
def test_beside_other_features(needs_root: None, oracle: Oracle, tmp_path: Path, options: dict[str, Any]) -> None:
    tree = tree_of(COMMON, prose(10_001, 3) + COMMON[77:], COMMON[:300_000] + mixed(70_003), mixed(50_000, 4) + COMMON)
    info = write(tree, image := tmp_path / "i", dedupe=True, **{**HC, **options})
    assert info.repeats > 4
    assert everyone_agrees(oracle, image, tree) == []


def test_the_same_for_any_jobs_and_cache(tmp_path: Path) -> None:
    tree = tree_of(*(prose(seed * 1000, seed) + COMMON[seed * 5000 :] + prose(20_000, seed) for seed in range(12)))
    plain = written(tree, tmp_path, dedupe=True, **HC)
    assert all(written(tree, tmp_path, dedupe=True, jobs=jobs, **HC) == plain for jobs in (1, 2, 8))
    for jobs in (1, 8):
        with CompressionCache(tmp_path / "cache") as cache:
            assert written(tree, tmp_path, dedupe=True, cache=cache, jobs=jobs, **HC) == plain
    assert cache.hits > 12


def test_what_gains_nothing_is_left_alone(tmp_path: Path) -> None:
    """Runs of one value, short repeats, bytes that compress to nothing, other algorithms."""
    from erofs_edge.erofs.rules import CompressionRule

    zeros = tree_of(prose(30_000, 1) + bytes(900_000), prose(30_000, 2) + bytes(900_000))
    short = tree_of(*(prose(50_000, i) + COMMON[:6000] + prose(50_000, -i) for i in range(1, 4)))
    cheap = tree_of(*(prose(50_000, i) + b"0123456789abcdef" * 5000 + b"end" for i in range(3)))
    for tree in (zeros, short, cheap):
        assert write(tree, tmp_path / "i", dedupe=True, **HC).repeats == 0
        assert written(tree, tmp_path, dedupe=True, **HC) == written(tree, tmp_path, **HC)
    rules = (CompressionRule(match="000", compression="zstd"),)
    info = write(tree_of(COMMON, b"x" * 5000 + COMMON), tmp_path / "i", dedupe=True, rules=rules, **HC)
    assert info.repeats == 0


def test_a_source_that_is_stored_as_it_is(tmp_path: Path) -> None:
    """Nothing to refer to: both are written."""
    rough = noise(100_000, 3)
    tree = tree_of(rough + b"1", rough + b"2" + prose(100_000, 3))
    write(tree, tmp_path / "i", dedupe=True, **HC)
    assert ours_agree(tmp_path / "i", tree) == []


parts = st.tuples(st.integers(0, 5), st.integers(0, 90_000), st.integers(1, 120_000))


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.lists(st.lists(parts, min_size=1, max_size=5), min_size=2, max_size=5),
    pcluster=st.sampled_from([4096, 16384, 65536]),
    tails=st.sampled_from([{}, {"ztailpacking": True}, {"fragments": "tails"}]),
)
def test_any_mosaic(
    needs_root: None, files: list[list[tuple[int, int, int]]], pcluster: int, tails: dict[str, Any]
) -> None:
    """Files made of parts of six sources, one of them incompressible, one a run of zeros."""
    stock = [*(prose(120_000, i) for i in range(3)), mixed(120_000, 1), noise(120_000, 1), bytes(120_000)]
    tree = tree_of(*(b"".join(stock[n][start : start + length] for n, start, length in parts) for parts in files))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "i"
        write(tree, image, dedupe=True, compression="lz4", pcluster=pcluster, **tails)
        assert ours_agree(image, tree) + kernel_differences(image, tree) == []
