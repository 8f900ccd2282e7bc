# SPDX-License-Identifier: Apache-2.0
"""Images that mkfs.erofs makes with codecs other than LZ4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reader_trees import make_tree, mkfs
from treediff import diff, scan

from erofs_edge.erofs.check import check
from erofs_edge.erofs.read import Image


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("codecs") / "source")


@pytest.mark.oracle
@pytest.mark.parametrize("version", ["1.8", "1.9"])
@pytest.mark.parametrize(
    "options",
    [
        ["-zzstd,3"],
        ["-zzstd,3", "-C65536", "-Ededupe"],
        ["-zdeflate,6", "-C16384"],
        ["-zdeflate,6", "-Ededupe"],
        ["-zlibdeflate", "-C16384"],
        ["-zlzma,6", "-C65536", "-Ededupe"],
        ["-zlzma,6", "-C16384", "-Eztailpacking,fragments"],
    ],
    ids=" ".join,
)
def test_other_codecs(
    version: str, options: list[str], source: Path, tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    path = mkfs(oracle(f"mkfs.erofs-{version}"), tmp_path / "image", source, options)
    with Image(path) as image:
        assert diff(image.tree(), scan(source)) == []
    assert not check(path).findings
