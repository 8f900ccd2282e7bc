# SPDX-License-Identifier: Apache-2.0
"""FileTree: paths, links, merging; what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.errors import SourceError
from erofs_edge.tree import BytesContent, FileContent, FileTree, Inode

NAME = st.binary(min_size=1, max_size=255).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))


def file(data: bytes = b"", origin: str = "") -> Inode:
    return Inode(stat.S_IFREG | 0o644, content=BytesContent(data), origin=origin)


def link(target: bytes) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, target=target)


@given(st.lists(NAME, min_size=1, max_size=5))
def test_what_is_added_is_found(parts: list[bytes]) -> None:
    tree = FileTree()
    node = tree.add(b"/".join(parts), file(b"x"))
    assert tree.get(b"/" + b"/".join(parts)) is node
    assert [path for path, inode in tree.walk() if inode is node] == [b"/" + b"/".join(parts)]
    assert tree.remove(b"/".join(parts))
    assert tree.get(b"/".join(parts)) is None


@given(st.lists(st.lists(NAME, min_size=1, max_size=3), max_size=12))
def test_walk_is_sorted_by_bytes_whatever_the_order_of_adding(paths: list[list[bytes]]) -> None:
    forward, backward = FileTree(), FileTree()
    for parts in paths:
        forward.directory(b"/".join(parts))
    for parts in reversed(paths):
        backward.directory(b"/".join(parts))
    listed = [path for path, _ in forward.walk()]
    assert listed == [path for path, _ in backward.walk()]
    assert [p.split(b"/") for p in listed[1:]] == sorted(p.split(b"/") for p in listed[1:])


def test_files_below_a_link_to_a_directory_land_in_that_directory() -> None:
    tree = FileTree()
    tree.directory("usr/bin")
    tree.add("bin", link(b"usr/bin"))
    tree.add("bin/sh", file(b"sh"))
    assert tree.get("usr/bin/sh") is not None
    assert tree.get("bin/sh") is None
    found = tree.get("/bin/sh", follow=True)
    assert found is not None and found.read() == b"sh"


def test_follow_stays_inside_and_ends() -> None:
    tree = FileTree()
    tree.add("etc/passwd", file(b"inside"))
    tree.add("up", link(b"../../../etc/passwd"))
    tree.add("absolute", link(b"/etc/passwd"))
    tree.add("loop", link(b"loop"))
    for name in ("up", "absolute"):
        found = tree.get(name, follow=True)
        assert found is not None and found.read() == b"inside"
    assert tree.get("loop", follow=True) is None


@pytest.mark.parametrize("path", [b"a/../b", b"a\0b", b"x" * 256])
def test_bad_paths_are_refused(path: bytes) -> None:
    with pytest.raises(SourceError, match="bad path"):
        FileTree().add(path, file())


def test_file_over_directory_and_directory_under_file_name_both_sides() -> None:
    tree = FileTree()
    tree.add("a/b", file(origin="first"))
    with pytest.raises(SourceError, match="second would replace a directory"):
        tree.add("a", file(origin="second"))
    with pytest.raises(SourceError, match="second needs a directory"):
        tree.add("a/b/c", file(origin="second"))


def test_directory_again_keeps_its_children_and_takes_the_metadata() -> None:
    tree = FileTree()
    tree.add("d/x", file())
    tree.add("d", Inode(stat.S_IFDIR | 0o700, uid=5))
    node = tree.get("d")
    assert node is not None and node.uid == 5 and list(node.children) == [b"x"]
    tree.add("/", Inode(stat.S_IFDIR | 0o711))
    assert tree.root.mode & 0o777 == 0o711 and b"d" in tree.root.children


def test_merge_joins_directories_keeps_links_and_leaves_the_other_alone() -> None:
    one, two = FileTree(), FileTree()
    one.add("d/a", file(b"1"))
    one.add("d/b", file(b"1"))
    shared = file(b"2")
    two.add("d/b", shared)
    two.add("e", shared)
    one.merge(two, at="/top")
    one.merge(two)
    assert one.get("d/b") is one.get("e") is one.get("top/e") is shared
    kept = one.get("d/a")
    assert kept is not None and kept.read() == b"1"
    assert set(two.root.children) == {b"d", b"e"}
    one.add("d/new", file())
    assert two.get("d/new") is None


def test_prune_drops_whole_directories() -> None:
    tree = FileTree()
    tree.add("doc/x/y", file())
    tree.add("keep/doc", file())
    assert tree.prune(lambda path, inode: inode.is_dir and path == b"/doc") == 1
    assert [path for path, _ in tree.walk()] == [b"/", b"/keep", b"/keep/doc"]


def test_file_content_reads_windows_and_notices_a_shorter_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    content = FileContent(path, 6, 2)
    assert content.read(0, 100) == b"234567"
    assert content.read(4, 2) == b"67"
    assert content.read(6, 5) == b""
    os.truncate(path, 5)
    with pytest.raises(SourceError, match="changed"):
        content.read(0, 6)
    path.unlink()
    with pytest.raises(SourceError, match="cannot read"):
        content.read(0, 1)
