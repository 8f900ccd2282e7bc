# SPDX-License-Identifier: Apache-2.0
"""Files stored beside their inodes and read on the way: which ones these are, and which are left to others."""

from __future__ import annotations

import stat
from pathlib import Path

from erofs_edge.erofs.ondisk import LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.small import TOLD, without_small
from erofs_edge.tree import BytesContent, Content, FileContent, Inode

BLOCK = 4096


def node(content: Content, number: int = 2, **more: object) -> Node:
    inode = Inode(stat.S_IFREG | 0o644, content=content)
    return Node(inode, b"/f%d" % number, number, None, size=content.size, **more)  # type: ignore[arg-type]


def test_what_fits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * (BLOCK - 32))
    fits, extended = node(FileContent(path, BLOCK - 32)), node(FileContent(path, BLOCK - 32), extended=True)
    crowded = node(FileContent(path, BLOCK - 32), xattrs=bytes(16))
    told: list[int] = []
    assert list(without_small([fits, extended, crowded], BLOCK, told.append)) == [extended, crowded]
    assert (fits.layout, fits.tail_size, fits.tail) == (LAYOUT_FLAT_INLINE, BLOCK - 32, path.read_bytes())
    assert (extended.layout, extended.tail, crowded.tail) == (LAYOUT_FLAT_PLAIN, b"", b"")
    assert sum(told) == BLOCK - 32


def test_what_has_changed_or_is_no_file_of_its_own_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    left = [
        node(FileContent(path, 99)),
        node(FileContent(path, 101)),
        node(FileContent(path, 50, 10)),
        node(FileContent(tmp_path / "missing", 5)),
        node(BytesContent(b"abc")),
        node(FileContent(path, BLOCK)),
    ]
    assert list(without_small(left, BLOCK, lambda _: None)) == left
    assert not any(one.tail for one in left)


def test_it_tells_while_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(2000))
    told: list[int] = []
    assert not list(without_small([node(FileContent(path, 2000), n) for n in range(100)], BLOCK, told.append))
    assert len(told) == 200_000 // TOLD + 1
    assert sum(told) == 200_000
