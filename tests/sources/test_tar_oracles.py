# SPDX-License-Identifier: Apache-2.0
"""bsdtar's formats, GNU tar's access control lists and dumps of directories, against what was packed."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sources.samples import entry, link_groups, rows, tar_bytes

from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import scan
from erofs_edge.sources.posix_acl import acl_attribute
from erofs_edge.sources.tar import read_tar

ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *one)
    for one in ((1, 7, 0xFFFFFFFF), (2, 5, 1000), (2, 4, 1001), (4, 5, 0xFFFFFFFF), (8, 6, 77), (16, 7, 0xFFFFFFFF),
                (32, 4, 0xFFFFFFFF))
)  # fmt: skip
DEFAULT = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 5, 0xFFFFFFFF) for tag in (1, 4, 32))


def pack(top: Path) -> None:
    (top / "sub/deep").mkdir(parents=True)
    (top / "sub/file").write_bytes(os.urandom(5000))
    os.link(top / "sub/file", top / "twin")
    (top / "link").symlink_to("sub/file")
    os.mkfifo(top / "fifo")
    (top / ("n" * 200)).write_bytes(b"long")
    Path(os.fsdecode(os.fsencode(top) + "/Grüße".encode())).write_bytes(b"UTF-8")
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 5000)
        file.truncate(3 << 20)
    os.setxattr(top / "sub/file", "user.binary", bytes(range(256)))
    for folder, folders, files in os.walk(top, topdown=False):
        for name in [*folders, *files]:
            os.utime(os.path.join(folder, name), ns=(0, 1_600_000_000_000_000_000), follow_symlinks=False)
    os.utime(top, ns=(0, 1_600_000_000_000_000_000))


@pytest.mark.parametrize("form", ["pax", "paxr", "gnutar", "ustar"])
def test_what_bsdtar_writes(tmp_path: Path, oracle: Callable[[str], str], form: str) -> None:
    top = tmp_path / "top"
    pack(top)
    if form == "ustar":
        (top / ("n" * 200)).unlink()
        os.utime(top, ns=(0, 1_600_000_000_000_000_000))
    options = [
        "--numeric-owner",
        "--format",
        form,
        *(["--xattrs", "--read-sparse"] if form == "pax" else ["--no-xattrs"]),
    ]
    command = [oracle("bsdtar"), *options, "-C", str(top), "-cf", str(tmp_path / "a.tar"), "."]
    subprocess.run(command, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    if form != "pax":
        os.removexattr(top / "sub/file", "user.binary")
    tree = read_tar(tmp_path / "a.tar", Cache(tmp_path / "cache"))
    assert rows(tree) == rows(scan(top))
    assert link_groups(tree) == [[b"/sub/file", b"/twin"]]


def test_access_control_lists_of_gnu_tar(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    top = tmp_path / "top"
    pack(top)
    os.setxattr(top / "sub/file", "system.posix_acl_access", ACCESS)
    os.setxattr(top / "sub", "system.posix_acl_default", DEFAULT)
    command = [
        oracle("gnu-tar"),
        "--format=pax",
        "--numeric-owner",
        "--acls",
        "-C",
        str(top),
        "-cf",
        str(tmp_path / "a.tar"),
    ]
    subprocess.run([*command, "."], check=True)
    tree = read_tar(tmp_path / "a.tar", Cache(tmp_path / "cache"))
    assert tree.get("sub/file").xattrs == {b"system.posix_acl_access": ACCESS}
    assert tree.get("sub").xattrs == {b"system.posix_acl_default": DEFAULT}
    assert tree.get("link").xattrs == {}


def test_dumps_of_directories(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    top = tmp_path / "top"
    pack(top)
    os.removexattr(top / "sub/file", "user.binary")
    command = [oracle("gnu-tar"), "--format=gnu", "--numeric-owner", "--listed-incremental", str(tmp_path / "seen")]
    subprocess.run([*command, "-C", str(top), "-cf", str(tmp_path / "a.tar"), "."], check=True)
    found = rows(read_tar(tmp_path / "a.tar", Cache(tmp_path / "cache")))
    assert found == rows(scan(top))


def test_labels_and_lists_by_hand(tmp_path: Path) -> None:
    headers = {
        "RHT.security.selinux": "system_u:object_r:bin_t:s0",
        "SCHILY.acl.access": "user::rwx,user:joe:r-x:1000,user:1001:r--,group::r-x,group:x:rw-:77,mask::rwx,other::r--",
    }
    (tmp_path / "a.tar").write_bytes(tar_bytes([entry("x", b"1", pax_headers=headers)]))
    xattrs = read_tar(tmp_path / "a.tar", Cache(tmp_path / "cache")).get("x").xattrs
    assert xattrs == {b"security.selinux": b"system_u:object_r:bin_t:s0\0", b"system.posix_acl_access": ACCESS}


def test_a_list_that_says_no_more_than_the_mode() -> None:
    text = "user::r-x\ngroup::r-x\nother::r-x\n"
    assert acl_attribute(text) is None
    assert acl_attribute(text, default=True) == DEFAULT


@pytest.mark.parametrize(
    "text",
    ["", "user::rwx", "x::rwx", "user::rwz,group::r--,other::r--", "user::r--,user::r--,group::r--,other::r--",
     "user::r--,group::r--,other:5:r--", "user::r--,user:5:r--,group::r--,other::r--", "user::r--:::::,group::r--",
     "user::r--,user:99999999999:r--,mask::r--,group::r--,other::r--"],
)  # fmt: skip
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"access control list|name and no number|does not belong"):
        acl_attribute(text)
