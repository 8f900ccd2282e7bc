# SPDX-License-Identifier: Apache-2.0
"""Remembered extents: no index is searched twice for them, and memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from erofs_edge import erofs
from erofs_edge.erofs import zmap
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.remembered import RememberedExtents
from erofs_edge.tree import BytesContent, FileTree, Inode

SIZE = 1000


def file_of(random: Random) -> list[Extent]:
    """Return the extents of a file of SIZE bytes."""
    cuts = [0, *sorted(random.sample(range(1, SIZE), 20)), SIZE]
    return [Extent(start, end - start, Kind.RAW, start) for start, end in pairwise(cuts)]


@pytest.mark.parametrize("limit", [1, 5, 30, 1000])
def test_any_order_of_reads_meets_the_same_extents(limit: int) -> None:
    random = Random(limit)
    files = [file_of(random) for _ in range(4)]
    memory = RememberedExtents(limit)
    for _ in range(500):
        nid = random.randrange(len(files))
        first, last = sorted(random.sample(range(SIZE + 1), 2))

        def search(at: int, nid: int = nid) -> Iterator[Extent]:
            return iter([extent for extent in files[nid] if extent.start + extent.length > at])

        met = list(memory.between(nid, first, last, search))
        assert met == [x for x in files[nid] if x.start < last and x.start + x.length > first]
        assert memory.count <= limit


def test_small_reads_search_the_index_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a file that is read byte by byte, and for the packed inode read by many small files."""
    root = Inode(0o040755)
    words = [f"{number}: {number * number}\n".encode() for number in range(400)]
    for number, word in enumerate(words):
        root.children[b"%03d" % number] = Inode(0o100644, content=BytesContent(word * 3))
    root.children[b"large"] = Inode(0o100644, content=BytesContent(b"".join(words) * 40))
    image = tmp_path / "image"
    erofs.build(FileTree(root), image, compression="lz4", fragments="all")
    searches: list[int] = []
    search = zmap.compressed_extents

    def counted(*args: object, **more: object) -> Iterator[Extent]:
        searches.append(args[3])  # type: ignore[arg-type]
        return search(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("erofs_edge.erofs.read.compressed_extents", counted)
    with erofs.open(image) as opened:
        large = opened.lookup("/large")
        whole = b"".join(opened.read(large, at, 100) for at in range(0, large.size, 100))
        assert whole == b"".join(words) * 40
        for number, word in enumerate(words):
            assert opened.read(opened.lookup(f"/{number:03}"), 0, 1000) == word * 3
        packed = -(-opened.packed.size // 4096)
    assert len(searches) <= 1 + len(words) + packed
