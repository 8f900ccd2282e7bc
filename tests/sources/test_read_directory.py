# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from sources.samples import link_groups, rows

from erofs_edge.errors import SourceError
from erofs_edge.sources.directory import read_directory, scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "sub/deep").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "empty").touch()
    os.link(top / "file", top / "sub/twin")
    (top / "sub/link").symlink_to("../file")
    (top / "dangling").symlink_to("/nowhere/at/all")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe name")).write_bytes(b"bytes")
    os.mkfifo(top / "fifo")
    (top / "sub").chmod(0o2750)
    (top / "file").chmod(0o4711)
    os.utime(top / "file", ns=(0, -1_500_000_001))
    os.utime(top / "sub/deep", ns=(0, 5_000_000_000_123_456_789))
    return top


def test_scan_takes_everything_as_it_is(folder: Path) -> None:
    os.setxattr(folder / "file", "user.key", b"\0value")
    tree = scan(folder)
    assert set(rows(tree)) == {
        b"/", b"/sub", b"/sub/deep", b"/sub/twin", b"/sub/link", b"/file", b"/empty", b"/dangling",
        b"/\xff\xfe name", b"/fifo",
    }  # fmt: skip
    for path, inode in tree.walk():
        info = os.lstat(os.fsencode(folder) + path)
        assert (inode.mode, inode.uid, inode.gid) == (info.st_mode, info.st_uid, info.st_gid)
        assert inode.mtime_ns == info.st_mtime_ns
    file = tree.get("file")
    assert file is not None
    assert (stat.S_IMODE(file.mode), file.mtime_ns) == (0o4711, -1_500_000_001)
    assert file.xattrs == {b"user.key": b"\0value"}
    assert file.read() == b"content"
    assert link_groups(tree) == [[b"/file", b"/sub/twin"]]
    assert rows(tree)[b"/sub/link"][5] == b"../file"
    assert rows(tree)[b"/dangling"][5] == b"/nowhere/at/all"


def test_scan_keeps_access_control_lists(folder: Path) -> None:
    # version 2, user::rwx user:1234:r-x group::r-x mask::r-x other::---
    entries = [(1, 7, 2**32 - 1), (2, 5, 1234), (4, 5, 2**32 - 1), (16, 5, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, perm, who in entries
    )
    try:
        os.setxattr(folder / "sub", "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system holds no access control lists")
    sub = scan(folder).get("sub")
    assert sub is not None
    assert sub.xattrs == {b"system.posix_acl_access": acl}


def test_scan_of_devices(folder: Path, needs_root: None) -> None:
    os.mknod(folder / "node", stat.S_IFBLK | 0o660, os.makedev(259, 300))
    (folder / "node").chmod(0o660)
    node = scan(folder).get("node")
    assert node is not None
    assert (node.mode, node.rdev) == (stat.S_IFBLK | 0o660, (259, 300))


def test_scan_of_what_is_no_directory(folder: Path) -> None:
    with pytest.raises(SourceError, match="not a directory"):
        scan(folder / "file")
    with pytest.raises(SourceError, match=r"nothing.*cannot read: No such file"):
        scan(folder / "nothing")


def test_read_directory_takes_nothing_of_the_host(folder: Path) -> None:
    (folder / "fifo").unlink()
    os.setxattr(folder / "file", "user.key", b"value")
    tree = read_directory(
        folder,
        uid=5,
        gid=6,
        file_mode=0o640,
        dir_mode=0o711,
        mtime_ns=7,
        executable=lambda path: path == b"/sub/twin",
        origin="m.yaml:3:1",
    )
    plain = (5, 6, 7, (0, 0))
    assert rows(tree) == {
        b"/": (stat.S_IFDIR | 0o711, *plain, b"", {}, b""),
        b"/sub": (stat.S_IFDIR | 0o711, *plain, b"", {}, b""),
        b"/sub/deep": (stat.S_IFDIR | 0o711, *plain, b"", {}, b""),
        b"/sub/twin": (stat.S_IFREG | 0o755, *plain, b"", {}, b"content"),
        b"/sub/link": (stat.S_IFLNK | 0o777, *plain, b"../file", {}, b""),
        b"/file": (stat.S_IFREG | 0o640, *plain, b"", {}, b"content"),
        b"/empty": (stat.S_IFREG | 0o640, *plain, b"", {}, b""),
        b"/dangling": (stat.S_IFLNK | 0o777, *plain, b"/nowhere/at/all", {}, b""),
        b"/\xff\xfe name": (stat.S_IFREG | 0o640, *plain, b"", {}, b"bytes"),
    }
    assert link_groups(tree) == []
    assert tree.root.origin == "m.yaml:3:1"


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_read_directory_refuses_special_files(folder: Path, kind: str) -> None:
    (folder / "fifo").unlink()
    if kind == "fifo":
        os.mkfifo(folder / "sub/special")
    else:
        socket.socket(socket.AF_UNIX).bind(str(folder / "sub/special"))
    with pytest.raises(SourceError, match="special: neither a file nor a directory") as caught:
        read_directory(folder)
    assert "entries" in str(caught.value.hint)


def test_a_file_that_shrinks_is_noticed_on_reading(folder: Path) -> None:
    tree = scan(folder)
    (folder / "file").write_bytes(b"cont")
    file = tree.get("file")
    assert file is not None
    with pytest.raises(SourceError, match="changed"):
        file.read()
