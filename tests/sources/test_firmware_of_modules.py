# SPDX-License-Identifier: Apache-2.0
"""Firmware that stays because a kernel module names it."""

from __future__ import annotations

import stat

from erofs_edge.sources.dropped import firmware_of_modules
from erofs_edge.tree import BytesContent, FileTree, Inode

FILES = ("brcm/a-sdio.bin", "brcm/a-sdio.acme,one.txt", "cypress/b.bin.xz", "other/c.bin", "licence")


def tree_of(*names: str) -> FileTree:
    tree = FileTree()
    for name in names:
        tree.add(f"usr/lib/firmware/{name}", Inode(stat.S_IFREG | 0o644, content=BytesContent(b"x")))
    return tree


def left(tree: FileTree) -> set[str]:
    top = "/usr/lib/firmware/"
    return {path.decode().removeprefix(top) for path, inode in tree.walk() if top.encode() in path and not inode.is_dir}


def test_what_modules_name_stays_and_what_nothing_has_is_told() -> None:
    tree = tree_of(*FILES)
    assert firmware_of_modules(tree, ["brcm/a-sdio.bin", "cypress/b.bin", "nowhere/d.bin"], []) == ["nowhere/d.bin"]
    assert left(tree) == {"brcm/a-sdio.bin", "cypress/b.bin.xz"}
    assert tree.get("usr/lib/firmware/other") is None


def test_names_may_be_globs_and_a_manifest_may_add_to_them() -> None:
    tree = tree_of(*FILES)
    assert firmware_of_modules(tree, ["brcm/a-sdio.*.txt"], ["other/*"]) == []
    assert left(tree) == {"brcm/a-sdio.acme,one.txt", "other/c.bin"}


def test_links_bring_what_they_lead_to() -> None:
    tree = tree_of("cypress/b.bin", "other/c.bin")
    tree.add("usr/lib/firmware/brcm/a.bin", Inode(stat.S_IFLNK | 0o777, target=b"../cypress/b.bin"))
    firmware_of_modules(tree, ["brcm/a.bin"], [])
    assert left(tree) == {"brcm/a.bin", "cypress/b.bin"}


def test_a_system_without_firmware_has_none_of_it() -> None:
    assert firmware_of_modules(FileTree(), ["b", "a", "b"], []) == ["a", "b"]
