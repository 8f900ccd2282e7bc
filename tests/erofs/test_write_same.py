# SPDX-License-Identifier: Apache-2.0
"""The same tree and options give the same bytes, whatever happens around them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from writer_check import write, written
from writer_trees import file, mixed, rich_tree, text

from erofs_edge.erofs import pipeline, twins
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree, Inode

BIG: dict[str, Any] = {"compression": "lz4hc", "level": 3, "pcluster": 16384}


def shuffled(node: Inode, seed: int) -> Inode:
    """Return the same tree, with its names inserted in another order."""
    names = list(node.children)
    random.Random(seed).shuffle(names)
    node.children = {name: shuffled(node.children[name], seed + 1) for name in names}
    return node


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_threads_and_insertion_order(tmp_path: Path, jobs: int) -> None:
    first = written(rich_tree(), tmp_path, jobs=3, **BIG)
    tree = rich_tree()
    for i in range(3):
        assert written(FileTree(shuffled(tree.root, i)), tmp_path, jobs=jobs, **BIG) == first


def test_cache_cold_warm_and_foreign(tmp_path: Path) -> None:
    plain = written(rich_tree(), tmp_path, **BIG)
    misses = []
    for options in (BIG, BIG, {**BIG, "level": 4}, BIG):
        with CompressionCache(tmp_path / "cache") as cache:
            info = write(rich_tree(), tmp_path / "cached", cache=cache, **options)
            misses.append(info.cache_misses)
            assert (info.cache_hits == 0) == bool(info.cache_misses)
        assert ((tmp_path / "cached").read_bytes() == plain) == (options is BIG)
    assert misses[0] == misses[2] > 40
    assert misses[1] == misses[3] == 0


def test_files_that_are_equal_in_the_middle(tmp_path: Path) -> None:
    """For large files, only the middle is compared first: they are equal only if everything is."""
    data = text(150_000)
    changed = [bytes([data[at] ^ 1]).join((data[:at], data[at + 1 :])) for at in (0, 70_000, 80_000, 149_999)]
    tree = FileTree()
    for i, content in enumerate([data, *changed, data]):
        tree.add(f"f{i}", file(content))
    info = write(tree, tmp_path / "image", **BIG)
    assert info.reused == 1
    with Image(tmp_path / "image") as image:
        assert [image.open(f"/f{i}").read() for i in range(6)] == [data, *changed, data]


def test_little_in_flight_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = written(rich_tree(), tmp_path, **BIG)
    monkeypatch.setattr(pipeline, "IN_FLIGHT", 1)
    monkeypatch.setattr(pipeline, "BATCH", 10_000)
    assert written(rich_tree(), tmp_path, **BIG) == plain


def test_environment_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "d").mkdir(parents=True)
    for i in range(30):
        (source / f"d/{i}").write_bytes(mixed(20_000, i % 20))
    program = (
        "import sys; from pathlib import Path\nfrom erofs_edge.sources.directory import scan\n"
        "from erofs_edge.erofs.write import WriteOptions, write_image\n"
        "options = WriteOptions(compression='lz4', jobs=int(sys.argv[3]))\n"
        "write_image(scan(Path(sys.argv[1])), Path(sys.argv[2]), options)"
    )
    images = []
    for i, extra in enumerate(
        [{"PYTHONHASHSEED": "1", "TZ": "UTC"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C"}]
    ):
        out = tmp_path / f"{i}.img"
        subprocess.run(
            [sys.executable, "-c", program, source, out, str(1 + i)], env={**os.environ, **extra}, check=True
        )
        images.append(out.read_bytes())
    assert images[0] == images[1]


def test_equal_files_are_compressed_once(tmp_path: Path) -> None:
    tree = FileTree()
    for i in range(6):
        tree.add(f"{i}", file(mixed(200_000, i // 3), mtime_ns=i))
    info = write(tree, tmp_path / "i", cache=(cache := CompressionCache(tmp_path / "c")), **BIG)
    assert (info.reused, info.cache_misses, info.compressed) == (4, 2, 6)
    cache.close()


def test_what_an_image_tells_about_itself(tmp_path: Path) -> None:
    tree = rich_tree()
    seen: list[tuple[int, int]] = []
    info = write(tree, tmp_path / "i", progress=lambda done, total: seen.append((done, total)), **BIG)
    assert info.size == (tmp_path / "i").stat().st_size == info.blocks * info.block_size
    assert info.data_blocks + info.metadata_blocks == info.blocks
    nodes = {id(n): n for _, n in tree.walk()}.values()
    assert info.inodes == len(nodes) == sum(info.kinds.values())
    assert info.kinds["symlinks"] == 3 and info.kinds["devices"] == 2
    assert info.uncompressed == sum(n.size for n in nodes if n.is_file)
    assert seen[-1] == (info.uncompressed, info.uncompressed)
    assert seen == sorted(seen)


def test_compression_pays_and_small_gain_does_not(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("text", file(text(1_000_000)))
    compressed = write(tree, tmp_path / "i", **BIG)
    flat = write(tree, tmp_path / "i", compression="none")
    assert compressed.size < 0.7 * flat.size
    assert (compressed.compressed, flat.compressed, flat.stored) == (1, 0, 1)


@pytest.mark.parametrize(
    ("compression", "level", "reads"),
    [("lz4", None, 0), ("lz4hc", 9, 0), ("zstd", 3, 0), ("zstd", 9, 2), ("deflate", 1, 2)],
)
def test_small_equal_files_are_looked_for_where_compressing_takes_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, level: int | None, reads: int
) -> None:
    """For any codec, each file is stored, as by mkfs.erofs: looking for equal ones only saves time."""
    hashed: list[str] = []
    digest = twins.digest
    monkeypatch.setattr(twins, "digest", lambda content, where: hashed.append(where) or digest(content, where))
    tree = FileTree()
    for name in ("a", "b"):
        tree.add(name, file(random.Random(1).randbytes(30_000) + text(30_000)))
    options = {"compression": compression, "level": level, "pcluster": 16384}
    size = len(written(tree, tmp_path, **options))
    assert len(hashed) == reads
    assert size > 70_000
    tree.add("b", file(random.Random(2).randbytes(30_000) + text(30_000)))
    assert abs(len(written(tree, tmp_path, **options)) - size) <= 4096
