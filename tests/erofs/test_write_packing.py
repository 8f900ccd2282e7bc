# SPDX-License-Identifier: Apache-2.0
"""Inline tails, fragments and shared blocks in all combinations, as every reader sees them."""

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
from writer_check import kernel_differences, write
from writer_trees import BORDERS, file, mixed, noise, rich_tree, text, trees

from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]
HC16: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 16384}
FAST4: dict[str, Any] = {"compression": "lz4"}
PACKINGS: dict[str, dict[str, Any]] = {
    "ztailpacking": {"ztailpacking": True},
    "fragments": {"fragments": "tails"},
    "all-fragments": {"fragments": "all"},
    "ztailpacking,dedupe": {"ztailpacking": True, "dedupe": True},
    "ztailpacking,fragments": {"ztailpacking": True, "fragments": "tails"},
    "ztailpacking,all-fragments": {"ztailpacking": True, "fragments": "all", "dedupe": True},
    "fragments=16K": {"fragments": "tails", "packed_pcluster": 16384},
    "all-fragments=4K": {"fragments": "all", "packed_pcluster": 4096},
}
CODECS: dict[str, dict[str, Any]] = {
    "hc16": HC16,
    "fast4": FAST4,
    "extended": {"compression": "lz4hc", "level": 3, "pcluster": 65536, "inode_form": "extended"},
    "b512": {"compression": "lz4", "block_size": 512, "pcluster": 4096},
    "b1024": {"compression": "lz4", "block_size": 1024, "inline_tails": False},
    "zstd": {"compression": "zstd", "level": 3, "pcluster": 65536},
    "deflate": {"compression": "deflate", "level": 1, "pcluster": 16384},
    "full": {"compression": "lz4", "full_index": True},
}
# each packing and each codec at least once, and all packings with the default codec
PAIRS = [(p, "hc16") for p in PACKINGS] + [
    ("ztailpacking", "fast4"),
    ("fragments", "fast4"),
    ("ztailpacking,all-fragments", "fast4"),
    ("ztailpacking", "extended"),
    ("fragments", "extended"),
    ("ztailpacking", "b512"),
    ("fragments", "b512"),
    ("ztailpacking", "b1024"),
    ("all-fragments", "b1024"),
    ("ztailpacking", "zstd"),
    ("fragments", "zstd"),
    ("ztailpacking", "deflate"),
    ("all-fragments", "deflate"),
    ("ztailpacking,dedupe", "full"),
    ("fragments", "full"),
]


@pytest.fixture(scope="module")
def rich() -> FileTree:
    return rich_tree()


@pytest.fixture(scope="module")
def without_large() -> FileTree:
    """For whole files in the packed inode: the kernel decodes a long extent again for each page of a fragment."""
    tree = rich_tree()
    tree.remove("large")
    return tree


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize(("packing", "codec"), [p if p[0] != "all-fragments=4K" else (p[0], "fast4") for p in PAIRS])
def test_everything_at_once(
    needs_root: None, oracle: Oracle, rich: FileTree, without_large: FileTree, tmp_path: Path, packing: str, codec: str
) -> None:
    tree = without_large if "all" in packing else rich
    info = write(tree, image := tmp_path / "i", **CODECS[codec], **PACKINGS[packing])
    assert ("fragments" in info.features) == ("fragments" in packing)
    assert everyone_agrees(oracle, image, tree) == []


@pytest.mark.parametrize("packing", ["ztailpacking", "ztailpacking,fragments", "all-fragments"])
@pytest.mark.parametrize("block_size", [8192, 65536])
def test_blocks_larger_than_a_page(rich: FileTree, tmp_path: Path, block_size: int, packing: str) -> None:
    """Indexes of such blocks have other forms; only our reader reads them here."""
    write(rich, image := tmp_path / "i", compression="lz4", block_size=block_size, **PACKINGS[packing])
    assert ours_agree(image, rich) == []


some_packings = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["lz4", "lz4hc"]),
        "level": st.none(),
        "pcluster": st.sampled_from([4096, 8192, 16384, 65536]),
        "ztailpacking": st.booleans(),
        "dedupe": st.booleans(),
        "fragments": st.sampled_from(["none", "tails", "all"]),
        "inline_tails": st.booleans(),
        "inode_form": st.sampled_from(["auto", "extended"]),
    }
)


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(), options=some_packings, packed=st.sampled_from([None, 4096, 131072]))
def test_any_tree(needs_root: None, tree: FileTree, options: dict[str, Any], packed: int | None) -> None:
    if options["fragments"] != "none":
        options = {**options, "packed_pcluster": packed}
    with tempfile.TemporaryDirectory() as folder:
        write(tree, image := Path(folder) / "i", **options)
        assert ours_agree(image, tree) + kernel_differences(image, tree) == []


def border_sizes() -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from(BORDERS), st.integers(1, 70_000), st.integers(130_000, 200_000))


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.tuples(border_sizes(), st.sampled_from([text, mixed, noise]), st.integers(0, 400)), max_size=12),
    options=some_packings,
)
def test_sizes_around_borders(
    needs_root: None, sizes: list[tuple[int, Callable[..., bytes], int]], options: dict[str, Any]
) -> None:
    """Attributes shift the header and the index, and so the position of what follows."""
    tree = FileTree()
    for i, (size, kind, attribute) in enumerate(sizes):
        tree.add(f"{i}", file(kind(size, i % 5), xattrs={b"user.v": bytes(10 * attribute)} if attribute else {}))
    with tempfile.TemporaryDirectory() as folder:
        write(tree, image := Path(folder) / "i", **options)
        assert ours_agree(image, tree) + kernel_differences(image, tree) == []


def test_sizes_go_down(without_large: FileTree, tmp_path: Path) -> None:
    sizes = {name: write(without_large, tmp_path / "i", **HC16, **options).size for name, options in PACKINGS.items()}
    plain = write(without_large, tmp_path / "i", **HC16).size
    assert sizes["fragments"] < sizes["fragments=16K"] < sizes["ztailpacking"] < plain
    assert sizes["all-fragments"] < sizes["ztailpacking"]
    assert sizes["ztailpacking,dedupe"] < sizes["ztailpacking"]


@pytest.mark.root
@pytest.mark.oracle
def test_long_indexes_and_inline_tails(needs_root: None, oracle: Oracle, tmp_path: Path) -> None:
    """Index and tail together are longer than a block: the inode must start where the tail crosses no boundary."""
    tree = FileTree()
    for i in range(12):
        unit = text(40_000, i)
        tree.add(f"{i}", file((unit * 400)[: 8_000_000 + i * 65_537 + i * i * 1371], mtime_ns=i))
    info = write(tree, image := tmp_path / "i", compression="lz4", ztailpacking=True)
    assert everyone_agrees(oracle, image, tree) == []
    with Image(image) as read:
        inline = [e for i in range(12) for e in read.extents(read.lookup(f"{i}")) if e.inline]
        assert len(inline) > 8
    assert info.minimum_kernel == (5, 17)


def test_a_tail_that_stays_in_its_block_is_the_one_that_was_found(tmp_path: Path) -> None:
    """How much a searching codec takes depends on its first guess, which depends on the previous extent."""
    wrong = []
    for front in range(452, 484, 4):
        for back in (444, 448, 456):
            made = FileTree()
            made.add("f", file(bytes(20_000) + noise(front, 1) + noise(back, 2) + bytes(6000)))
            write(made, tmp_path / "i", compression="zstd", block_size=512, ztailpacking=True, jobs=1)
            wrong += ours_agree(tmp_path / "i", made)
    assert wrong == []


def test_device_trees_at_the_end_of_the_packed_inode(tmp_path: Path) -> None:
    """They have a level of their own, also where the packed inode's end was tried as an inline tail."""
    options = {"compression": "lz4hc", "level": 12, "fragments": "all", "ztailpacking": True}
    wrong = []
    for seed in (3, 4, 13, 20):
        made, rng = FileTree(), random.Random(seed)
        for number in range(rng.randrange(1, 9)):
            made.add(f"{number}", file(text(rng.randrange(9000), number)))
        for number in range(3):
            made.add(f"z{number}.dtb", file(b"\xd0\x0d\xfe\xed" + text(rng.randrange(500, 9000), number)))
        write(made, tmp_path / "i", pcluster=16384, packed_pcluster=16384, **options)
        wrong += ours_agree(tmp_path / "i", made)
    assert wrong == []
