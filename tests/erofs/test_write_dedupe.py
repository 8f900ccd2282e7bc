# SPDX-License-Identifier: Apache-2.0
"""Equal files that share their blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packing_check import everyone_agrees
from treediff import diff
from writer_check import write
from writer_trees import file, mixed, noise, rich_tree, text

from erofs_edge.erofs.ondisk import INCOMPAT_DEDUPE, LAYOUT_COMPRESSED_COMPACT
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]
BIG: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 65536}


def blocks_of(image: Image, path: str) -> list[tuple[int, int]]:
    return [(e.address, e.size) for e in image.extents(image.lookup(path)) if not e.inline]


@pytest.mark.parametrize("compression", [BIG, {"compression": "lz4"}, {"compression": "none"}], ids=str)
def test_equal_files_have_one_set_of_blocks(tmp_path: Path, compression: dict[str, Any]) -> None:
    tree = FileTree()
    for i in range(5):
        # different times and attributes give inodes of different sizes, and so indexes of different alignment
        tree.add(f"{i}", file(mixed(300_000), mtime_ns=i // 2, xattrs={b"user.x": b"v" * (i * 7)} if i else {}))
    plain = write(tree, tmp_path / "plain", **compression)
    info = write(tree, tmp_path / "i", dedupe=True, **compression)
    assert (info.reused, info.shared) == (4, 4)
    assert info.data_blocks == plain.data_blocks // 5
    with Image(tmp_path / "i") as image:
        assert all(blocks_of(image, f"{i}") == blocks_of(image, "0") for i in range(5))
        if compression["compression"] != "none":
            assert image.inode(image.lookup("4").nid).layout == LAYOUT_COMPRESSED_COMPACT


@pytest.mark.parametrize(
    ("options", "bit"), [({"compression": "none"}, 0), ({"compression": "lz4"}, INCOMPAT_DEDUPE)], ids=str
)
def test_only_shared_pclusters_need_the_bit(tmp_path: Path, options: dict[str, Any], bit: int) -> None:
    """The option alone does not need it."""
    tree = FileTree()
    tree.add("a", file(text(90_000)))
    tree.add("raw-a", file(noise(90_000)))
    tree.add("raw-b", file(noise(90_000)))
    write(tree, tmp_path / "i", dedupe=True, **options)
    with Image(tmp_path / "i") as image:
        assert not image.superblock.raw.feature_incompat & INCOMPAT_DEDUPE
    tree.add("b", file(text(90_000)))
    info = write(tree, tmp_path / "i", dedupe=True, **options)
    with Image(tmp_path / "i") as image:
        assert image.superblock.raw.feature_incompat & INCOMPAT_DEDUPE == bit
    assert info.minimum_kernel == ((6, 1) if bit else (5, 4))


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("first", [0, 3500])
def test_tails_of_flat_files_find_their_place(needs_root: None, oracle: Oracle, tmp_path: Path, first: int) -> None:
    """A tail may be inline in one file and have no room in the other: then it is copied, or becomes part of a block."""
    tree = FileTree()
    for size in (2500, 4000, 4095, 4096, 9000, 10_240, 12_287, 12_288):
        for i, attribute in enumerate([first, 3500 - first, first]):
            tree.add(f"{size}-{i}", file(noise(size), xattrs={b"user.v": bytes(attribute)} if attribute else {}))
    info = write(tree, image := tmp_path / "i", dedupe=True, **BIG)
    assert info.shared > 8
    assert everyone_agrees(oracle, image, tree) == []


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [BIG, {"compression": "none"}, {"compression": "lz4", "block_size": 512, "pcluster": 4096}],
    ids=str,
)
def test_everything_at_once(needs_root: None, oracle: Oracle, tmp_path: Path, options: dict[str, Any]) -> None:
    tree = rich_tree()
    plain = write(tree, tmp_path / "plain", **options)
    info = write(tree, image := tmp_path / "i", dedupe=True, **options)
    assert info.shared > 2 and info.size < plain.size
    assert everyone_agrees(oracle, image, tree) == []


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_an_equal_file_that_has_no_room_beside_its_inode(tmp_path: Path, compression: str) -> None:
    """The first one has no blocks to share at all: the second gets its own, with the content."""
    made = FileTree()
    data = noise(4050, 7)
    made.add("a", file(data))
    made.add("b", file(data, mtime_ns=1_500_000_000))
    made.add("c", file(data, xattrs={b"user.long": b"v" * 300}))
    write(made, tmp_path / "i", compression=compression, dedupe=True)
    with Image(tmp_path / "i") as image:
        assert diff(image.tree(), made) == []
        assert [image.lookup(name).block >= 0 for name in ("/a", "/b", "/c")] == [False, True, True]
