# SPDX-License-Identifier: Apache-2.0
"""newc archives: golden bytes, and GNU cpio as the second reader."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.errors import CapacityError
from erofs_edge.tree import BytesContent, FileTree, Inode

EPOCH = 1_700_000_000


def sample() -> FileTree:
    tree = FileTree()
    shared = Inode(0o100640, 1, 2, content=BytesContent(b"hello"))
    tree.add("z/file", shared)
    tree.add("a/link", shared)
    tree.add("a/empty", Inode(0o100600))
    tree.add("a/sym", Inode(0o120777, target=b"../z/file"))
    tree.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    return tree


def test_golden_entry() -> None:
    tree = FileTree()
    tree.add("f", Inode(0o100644, 3, 4, content=BytesContent(b"abcde")))
    expected = (
        b"070701" b"00000001" b"000081A4" b"00000003" b"00000004" b"00000001" b"6553F100" b"00000005"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000" b"f\0" b"abcde\0\0\0"
        b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"00000000" b"TRAILER!!!\0" b"\0\0\0"
    )  # fmt: skip
    assert write_cpio(tree, epoch=EPOCH) == expected.ljust(512, b"\0")


def test_gnu_cpio_unpacks_the_same_tree(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    archive = write_cpio(sample(), epoch=EPOCH)
    run = {
        "input": archive,
        "cwd": tmp_path,
        "capture_output": True,
        "env": {"TZ": "UTC", "LC_ALL": "C"},
    }
    listing = subprocess.run(
        [oracle("cpio"), "-itv", "--numeric-uid-gid", "--quiet"], check=True, **run
    ).stdout.decode()
    assert [line.split()[0] for line in listing.splitlines()] == [
        "drwxr-xr-x", "-rw-------", "-rw-r-----", "lrwxrwxrwx", "drwxr-xr-x", "crw-------", "drwxr-xr-x", "-rw-r-----",
    ]  # fmt: skip
    assert all("2023" in line for line in listing.splitlines())
    assert "  5,   1" in listing
    subprocess.run([oracle("cpio"), "-idm", "--quiet", "--no-preserve-owner", "[!d]*"], check=True, **run)
    assert (tmp_path / "a/link").read_bytes() == b"hello"
    assert (tmp_path / "a/link").stat().st_ino == (tmp_path / "z/file").stat().st_ino
    assert os.readlink(tmp_path / "a/sym") == "../z/file"
    assert (tmp_path / "a/empty").read_bytes() == b""


def test_insertion_order_changes_nothing() -> None:
    tree = FileTree()
    for path, inode in reversed([entry for entry in sample().walk() if not entry[1].is_dir]):
        if path != b"/z/file":
            tree.add(path, inode)
        if path == b"/a/link":
            tree.add("z/file", inode)
    assert write_cpio(tree, epoch=EPOCH) == write_cpio(sample(), epoch=EPOCH)


def test_file_that_does_not_fit_is_named() -> None:
    class Huge:
        size = 1 << 32

        def read(self, offset: int, length: int) -> bytes:
            raise AssertionError("not to be read")

    tree = FileTree()
    tree.add("big/file", Inode(0o100644, content=Huge()))
    with pytest.raises(CapacityError) as caught:
        write_cpio(tree, epoch=EPOCH)
    assert caught.value.where == "big/file"
