# SPDX-License-Identifier: Apache-2.0
"""Images of many trees and options, as fsck.erofs and the kernel read them."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treediff import diff
from writer_check import fsck_differences, kernel_differences, write
from writer_trees import NS, file, rich_tree, text, trees

from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree, Inode

Oracle = Callable[[str], str]
OPTIONS: list[dict[str, Any]] = [
    {"compression": "none"},
    {"compression": "lz4"},
    {"compression": "lz4hc", "level": 9, "pcluster": 65536},
    {"compression": "lz4", "pcluster": 1 << 20},
    {"compression": "lz4hc", "level": 12, "pcluster": 12288, "inode_form": "extended"},
    {"compression": "lz4", "pcluster": 16384, "inline_tails": False, "checksum": False},
    {"compression": "lz4", "block_size": 512, "pcluster": 512},
    {"compression": "lz4", "block_size": 512, "pcluster": 8192},
    {"compression": "lz4hc", "level": 3, "block_size": 1024, "pcluster": 16384},
    {"compression": "none", "block_size": 2048},
]
some_options = st.builds(
    lambda compression, bits, blocks, **rest: {
        "compression": compression,
        "block_size": 1 << bits,
        "pcluster": blocks << bits,
        **rest,
    },
    compression=st.sampled_from(["none", "lz4", "lz4hc"]),
    bits=st.sampled_from([9, 10, 11, 12, 12, 12, 12]),
    blocks=st.sampled_from([1, 1, 2, 3, 4, 16]),
    inode_form=st.sampled_from(["auto", "extended"]),
    inline_tails=st.booleans(),
    epoch=st.sampled_from([None, 0, 1_700_000_000]),
)


@pytest.fixture(scope="module")
def rich() -> FileTree:
    return rich_tree()


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_everything_at_once_through_fsck(
    oracle: Oracle, rich: FileTree, tmp_path: Path, options: dict[str, Any]
) -> None:
    write(rich, image := tmp_path / "i", **options)
    assert fsck_differences(oracle, image, rich) == []


@pytest.mark.root
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_everything_at_once_through_the_kernel(
    needs_root: None, rich: FileTree, tmp_path: Path, options: dict[str, Any]
) -> None:
    write(rich, image := tmp_path / "i", **options)
    assert kernel_differences(image, rich) == []


@pytest.mark.parametrize("block_size", [2048, 4096, 8192, 16384, 32768, 65536])
@pytest.mark.parametrize("compression", ["none", "lz4hc"])
def test_everything_at_once_through_our_reader(
    rich: FileTree, tmp_path: Path, block_size: int, compression: str
) -> None:
    """The only reader here for blocks larger than a page."""
    write(rich, tmp_path / "i", compression=compression, level=None, block_size=block_size, pcluster=4 * block_size)
    with Image(tmp_path / "i") as image:
        assert diff(image.tree(), rich) == []


@pytest.mark.root
def test_fixed_time_and_owner(needs_root: None, rich: FileTree, tmp_path: Path) -> None:
    write(rich, image := tmp_path / "i", epoch=1_234_567, times="fixed", all_root=True)
    assert kernel_differences(image, rich, all_root=True, mtime_ns=1_234_567 * NS) == []


@pytest.mark.root
def test_clamped_times(needs_root: None, tmp_path: Path) -> None:
    tree, clamped = FileTree(), FileTree()
    for name, time, after in [
        ("old", -5, -5),
        ("same", 10 * NS, 10 * NS),
        ("later", 10 * NS + 1, 10 * NS),
        ("new", 99 * NS, 10 * NS),
    ]:
        tree.add(name, file(b"", mtime_ns=time))
        clamped.add(name, file(b"", mtime_ns=after))
    write(tree, image := tmp_path / "i", epoch=10, times="clamp")
    assert kernel_differences(image, clamped) == []


@pytest.mark.root
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(), options=some_options)
def test_any_tree_through_the_kernel(needs_root: None, tree: FileTree, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, image := Path(folder) / "i", **options)
        assert kernel_differences(image, tree) == []


@pytest.mark.oracle
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(), options=some_options)
def test_any_tree_through_fsck(oracle: Oracle, tree: FileTree, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, image := Path(folder) / "i", **options)
        assert fsck_differences(oracle, image, tree) == []


@pytest.mark.root
@pytest.mark.parametrize("block_size", [512, 4096])
def test_large_directories_and_a_root_late_in_its_block(needs_root: None, tmp_path: Path, block_size: int) -> None:
    tree = FileTree()
    for i in range(10_000):
        tree.add(f"many/{i * 7919 % 10_000:05d}" + "x" * (i % 40), file(b"%d" % i))
    for i in range(300):
        tree.add(f"{i}-" + "y" * (i % 200), Inode(stat.S_IFDIR | 0o700))
    tree.root.xattrs = {b"user.big": b"v" * 9000, b"user.small": b""}
    for xattrs in ({b"user.common": b"c" * 5000}, {b"user.common": b"c" * 5000, b"security.s": b"1"}):
        for i in range(4):
            tree.add(f"x{len(xattrs)}/{i}", file(text(6000, i), xattrs=dict(xattrs)))
    write(tree, image := tmp_path / "i", block_size=block_size)
    assert kernel_differences(image, tree) == []


@pytest.mark.root
def test_more_links_than_a_compact_inode_counts(needs_root: None, tmp_path: Path) -> None:
    tree = FileTree()
    linked = file(b"linked")
    tree.root.children = {b"%d" % i: linked for i in range(65_600)}
    write(tree, image := tmp_path / "i")
    assert kernel_differences(image, tree) == []
