# SPDX-License-Identifier: Apache-2.0
"""Builds in miniature: folders with the records and the image that a page is made from."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erofs_edge.build.contents import paths_by_origin
from erofs_edge.build.record import write_json
from erofs_edge.erofs import build
from erofs_edge.tree import BytesContent, FileTree, Inode

Made = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


def package(version: str, **fields: object) -> dict[str, Any]:
    return {
        "version": version, "arch": "arm64", "source": "src", "source_version": version, "maintainer": "A <a@b.c>",
        "homepage": "", "summary": "words", "licenses": ["MIT"], "depends": [], "archive": "debian",
        "sha256": "ab" * 32, "size": 1, "in": ["system"], "requested": False,
    } | fields  # fmt: skip


def regular(data: bytes, origin: str) -> Inode:
    return Inode(stat.S_IFREG | 0o644, content=BytesContent(data), origin=origin)


def small_tree(tool: bytes = b"tool" * 5000) -> FileTree:
    """A tree of two packages, an overlay with a hostile name and a step."""
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, origin="tool"))
    tree.add("usr/bin/tool", regular(tool, "tool"))
    tree.add("usr/lib/libx.so.1", regular(bytes(range(256)) * 64, "libx"))
    tree.add("usr/lib/libx.so", Inode(stat.S_IFLNK | 0o777, target=b"libx.so.1", origin="libx"))
    tree.add("usr/share/doc/tool/copyright", regular(b"Licence\n" * 2000, "tool"))
    tree.add(b"etc/\xff" + HOSTILE.encode(), regular(b"x" * 9000, "/home/me/product/system.yaml:7:5"))
    tree.add("etc/passwd", regular(b"root\n", "accounts"))
    return tree


@pytest.fixture
def make(tmp_path: Path) -> Made:
    """`make("name", tree, tool="1.0", board="b", **of contents.json)`: the folder of a build."""

    def made(name: str, tree: FileTree | None = None, tool: str = "1.0", board: str = "b", **contents: Any) -> Path:
        out = tmp_path / name
        out.mkdir()
        tree = tree or small_tree()
        build(tree, out / "system.img", compression="lz4hc", epoch=7)
        size = (out / "system.img").stat().st_size
        packages = {"tool": package(tool, licenses=["GPL-2.0-or-later", HOSTILE]), "libx": package("3")}
        record = {
            "format": 1, "board": board, "arch": "arm64", "epoch": 7, "erofs_edge": {"version": "0.1"},
            "system": {"name": f"s{HOSTILE}", "root_hash": "cd" * 32, "partition": "system", "slots": ["a", "b"]},
            "sign": {"name": "dev", "development": True, "rollback_index": 3}, "boot": {"kernel": "6.12"},
            "files": {"system.img": {"size": size, "sha256": "ee" * 32}, "sign.pub.pem": {"size": 3, "sha256": ""}},
            "partitions": {"system_a": {"size": 1 << 20, "start": 0}, "data": {"size": 1 << 20, "start": 1 << 20}},
        }  # fmt: skip
        write_json(out / "release.json", record)
        paths = paths_by_origin(tree, packages)
        more = {"size_budget": {}, "vulnerabilities": {}} | contents
        write_json(
            out / "contents.json",
            {"format": 1, "system": "s", "suite": "trixie", "epoch": 7, "packages": packages, "paths": paths} | more,
        )
        return out

    return made
