# SPDX-License-Identifier: Apache-2.0
"""Files with holes give the same image as the same bytes without holes, and holes are not read."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from writer_trees import mixed, text

from erofs_edge.erofs import contents
from erofs_edge.erofs.ahead import HeadStart
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.codings import choose_codings
from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.plan import make_plan
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.errors import SourceError
from erofs_edge.reading import read_exactly
from erofs_edge.sources.directory import scan

DATA = {PIECE + 100_000: text(50_000, 1), 4 * PIECE - 5000: mixed(70_000, 2)}
SIZE = 6 * PIECE + 12_345  # of its seven pieces three are holes
HOLES = [0, 2 * PIECE, 5 * PIECE]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Yield (a folder with a file that has holes, one with the same bytes and no holes)."""
    sparse, dense = (tmp_path_factory.mktemp(name) for name in ("sparse", "dense"))
    whole = bytearray(SIZE)
    with (sparse / "file").open("wb") as file:
        for offset, data in DATA.items():
            file.seek(offset)
            file.write(data)
            whole[offset : offset + len(data)] = data
        file.truncate(SIZE)
    (dense / "file").write_bytes(whole)
    for folder in (sparse, dense):
        os.link(folder / "file", folder / "link")
        os.utime(folder / "file", (1, 1))
        os.utime(folder, (1, 1))
    return sparse, dense


def built(folder: Path, out: Path, options: WriteOptions) -> bytes:
    write_image(scan(folder), out, options)
    return out.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": 65536},
        {"chunk_size": PIECE},
        {"compression": "lz4", "pcluster": 65536},
        {"compression": "lz4", "chunk_size": 65536, "ztailpacking": True},
        {"compression": "zstd", "level": 1, "fragments": "tails"},
        {"compression": "lz4", "fragments": "all"},
        {"compression": "lz4hc", "level": 3, "dedupe": True},
    ],
    ids=str,
)
def test_the_image_is_the_same(trees: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    sparse, dense = trees
    options = WriteOptions(**changes)
    assert built(sparse, tmp_path / "sparse.img", options) == built(dense, tmp_path / "dense.img", options)


def test_by_processes_with_a_cache_and_a_baseline(trees: tuple[Path, Path], tmp_path: Path) -> None:
    sparse, dense = trees
    options = WriteOptions(compression="lz4", jobs=2)
    expected = built(dense, tmp_path / "dense.img", options)
    with HeadStart(options) as start:
        tree = scan(sparse, start.offer)
        write_image(tree, tmp_path / "processes.img", options.replaced(ahead=start))
    assert (tmp_path / "processes.img").read_bytes() == expected
    cached = options.replaced(cache=CompressionCache(tmp_path / "cache"))
    assert built(sparse, tmp_path / "cold.img", cached) == expected
    assert built(sparse, tmp_path / "warm.img", cached) == expected
    again = built(sparse, tmp_path / "again.img", options.replaced(baseline=tmp_path / "dense.img"))
    assert again == expected


@pytest.mark.parametrize("changes", [{"chunk_size": 65536}, {"compression": "lz4"}], ids=str)
def test_holes_are_not_read(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    read: list[int] = []

    def noted(fd: int, length: int, start: int) -> bytes:
        if length == PIECE:
            read.append(start)
        return read_exactly(fd, length, start)

    monkeypatch.setattr(contents, "read_exactly", noted)
    built(trees[0], tmp_path / "out.img", WriteOptions(**changes))
    assert read and not set(read) & set(HOLES)


def test_a_file_system_that_knows_no_holes(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = WriteOptions(chunk_size=65536)
    expected = built(trees[1], tmp_path / "dense.img", options)
    seek = os.lseek

    def refused(fd: int, start: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise OSError(22, "Invalid argument")
        return seek(fd, start, whence)

    monkeypatch.setattr(os, "lseek", refused)
    assert built(trees[0], tmp_path / "out.img", options) == expected


def test_files_whose_blocks_kernels_cannot_count_are_refused_at_once(tmp_path: Path) -> None:
    limit = (1 << 32) - 1
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/large").open("wb") as file:
        file.truncate(limit * 512 + 1)
    options = WriteOptions(compression="lz4hc", level=3, block_size=512, pcluster=4096)
    started = time.process_time()
    with (
        HeadStart(options) as ahead,
        pytest.raises(SourceError, match="kernels read no compressed file of more") as told,
    ):
        write_image(scan(tmp_path / "tree", ahead.offer), tmp_path / "image", options.replaced(ahead=ahead))
    assert told.value.where == "/large" and time.process_time() - started < 10  # all of it takes minutes
    assert not (tmp_path / "image").exists()
    with (tmp_path / "tree/large").open("r+b") as file:
        file.truncate(limit * 512)
    plan = make_plan(scan(tmp_path / "tree"), options)
    assert choose_codings(plan, options).default is not None
