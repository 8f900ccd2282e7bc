# SPDX-License-Identifier: Apache-2.0
"""Exclusions, owners and hard links, as mkfs.erofs's options change them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.erofs.read import Image
from erofs_edge.errors import UsageError
from erofs_edge.sources.directory import scan
from erofs_edge.sources.rewrite import exclude, set_owners, split_hard_links
from erofs_edge.tree import FileTree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for name in ("a/b/c.o", "a/b/keep", "a/x.o", "b/deep", "b2", "z9"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    os.link(root / "b2", root / "linked")
    return root


Row = tuple[bytes, int, int, int]


def rows(tree: FileTree) -> list[Row]:
    known: dict[int, int] = {}
    return [(p, i.uid, i.gid, known.setdefault(id(i), len(known))) for p, i in tree.walk()]


CASES: dict[str, tuple[list[str], Callable[[FileTree], object]]] = {
    "path": (["--exclude-path=a/b"], lambda t: exclude(t, [b"a/b"])),
    "regex": ([r"--exclude-regex=\.o$"], lambda t: exclude(t, regexes=[r"\.o$"])),
    "anchored": (["--exclude-regex=^b"], lambda t: exclude(t, regexes=["^b"])),
    "class": (["--exclude-regex=[[:digit:]]"], lambda t: exclude(t, regexes=["[[:digit:]]"])),
    "force": (["--force-uid=7", "--force-gid=8"], lambda t: set_owners(t, uid=7, gid=8)),
    "offset": (["--uid-offset=100000", "--gid-offset=5"], lambda t: set_owners(t, uid_offset=100000, gid_offset=5)),
    "both": (["--force-uid=7", "--uid-offset=2"], lambda t: set_owners(t, uid=7, uid_offset=2)),
    "links": (["--hard-dereference"], split_hard_links),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_mkfs(oracle: Callable[[str], str], source: Path, case: str) -> None:
    arguments, change = CASES[case]
    image = source.parent / "i"
    subprocess.run([oracle("mkfs.erofs-1.9"), *arguments, "--quiet", str(image), str(source)], check=True)
    change(ours := scan(source))
    with Image(image) as opened:
        assert rows(ours) == rows(opened.tree())


def test_a_leading_slash_does_no_harm(source: Path) -> None:
    one, other = scan(source), scan(source)
    before = rows(one)
    assert exclude(one, [b"/b/deep"]) == exclude(other, [b"b/deep"]) == []
    assert rows(one) == rows(other) != before


def test_what_matches_nothing_is_told(source: Path) -> None:
    tree = scan(source)
    before = rows(tree)
    told = exclude(tree, [b"b/none", b"/b/deep/none"], ["^c+$", "none$", "x{9}"])
    assert told == [
        "--exclude-path b/none", "--exclude-path /b/deep/none",
        "--exclude-regex ^c+$", "--exclude-regex none$", "--exclude-regex x{9}",
    ]  # fmt: skip
    assert rows(tree) == before
    assert exclude(tree, [b"b", b"b/deep"], ["^b/deep", "^b$"]) == []  # though all of it goes with the first


def test_owners_out_of_range(source: Path) -> None:
    with pytest.raises(UsageError, match="out of range"):
        set_owners(scan(source), uid=0, uid_offset=-1)


def test_a_bad_expression() -> None:
    with pytest.raises(UsageError, match=r"--exclude-regex a\(:"):
        exclude(FileTree(), regexes=["a("])
