# SPDX-License-Identifier: Apache-2.0
"""Full indexes where compact ones would be possible (-E legacy-compress)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from treediff import diff
from writer_check import fsck_differences, kernel_differences, write
from writer_trees import rich_tree

from erofs_edge.erofs.check import check
from erofs_edge.erofs.inode import LAYOUT_NAMES
from erofs_edge.erofs.read import Image

OPTIONS: list[dict[str, Any]] = [
    {"compression": "lz4"},
    {"compression": "lz4", "pcluster": 65536, "chunk_size": 4096},
    {"compression": "lz4hc", "level": 3, "pcluster": 16384, "ztailpacking": True},
    {"compression": "lz4", "pcluster": 16384, "fragments": "tails"},
    {"compression": "lz4", "pcluster": 4096, "dedupe": True, "block_size": 1024},
]


@pytest.mark.root
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_the_kernel_and_our_reader(needs_root: None, tmp_path: Path, options: dict[str, Any]) -> None:
    write(tree := rich_tree(), image := tmp_path / "i", full_index=True, **options)
    assert kernel_differences(image, tree) == []
    with Image(image) as opened:
        layouts = {LAYOUT_NAMES[inode.layout] for _, inode in opened.walk()}
        assert "compressed full" in layouts
        assert "compressed compact" not in layouts
        assert diff(opened.tree(), tree) == []
    assert check(image).findings == []


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_fsck(oracle: Callable[[str], str], tmp_path: Path, options: dict[str, Any]) -> None:
    write(tree := rich_tree(), image := tmp_path / "i", full_index=True, **options)
    assert fsck_differences(oracle, image, tree) == []
