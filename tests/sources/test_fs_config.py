# SPDX-License-Identifier: Apache-2.0
"""AOSP's canned fs_config: owners, modes and capabilities as data; wrong lines are named."""

from __future__ import annotations

import stat

import pytest

from erofs_edge.errors import SourceError
from erofs_edge.sources.fs_config import CAPABILITY, Config, apply_fs_config, capability_value, parse_fs_config
from erofs_edge.tree import BytesContent, FileTree, Inode

TEXT = """\
 0 0 755
system/bin 0 2000 751
system/bin/run 1000 1001 4750 capabilities=0x1000000040
system/bin/link 0 0 777 capabilities=0
"""


def tree() -> FileTree:
    made = FileTree(Inode(stat.S_IFDIR | 0o700, 5, 5))
    made.add("bin", Inode(stat.S_IFDIR | 0o700, 5, 5))
    made.add("bin/run", Inode(stat.S_IFREG | 0o600, 5, 5, content=BytesContent(b"x")))
    made.add("bin/link", Inode(stat.S_IFLNK | 0o777, 5, 5, target=b"run", xattrs={CAPABILITY: b"old", b"user.k": b"v"}))
    return made


@pytest.mark.parametrize("mount_point", ["/system", "system/", "system"])
def test_everything_is_what_the_file_says(mount_point: str) -> None:
    apply_fs_config(made := tree(), parse_fs_config(TEXT, "fc"), mount_point)
    found = {path: (inode.mode, inode.uid, inode.gid, inode.xattrs) for path, inode in made.walk()}
    assert found == {
        b"/": (stat.S_IFDIR | 0o755, 0, 0, {}),
        b"/bin": (stat.S_IFDIR | 0o751, 0, 2000, {}),
        b"/bin/run": (
            stat.S_IFREG | 0o4750, 1000, 1001,
            {CAPABILITY: bytes.fromhex("01000002 40000000 00000000 10000000 00000000")},
        ),
        b"/bin/link": (stat.S_IFLNK | 0o777, 0, 0, {b"user.k": b"v"}),
    }  # fmt: skip


def test_missing_paths_are_named_together() -> None:
    config = parse_fs_config(" 0 0 755\nbin 0 0 755\n", "fc")
    with pytest.raises(SourceError, match=r"no line for bin/link, bin/run$") as caught:
        apply_fs_config(tree(), config, where="fc")
    assert caught.value.where == "fc"


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("a 1 2 0644", (b"a", Config(1, 2, 0o644, 0))),
        ("/a/b/ 1 2 644 capabilities=010", (b"a/b", Config(1, 2, 0o644, 8))),
        ("a 1 2 644 capabilities=10", (b"a", Config(1, 2, 0o644, 10))),
        ("a\t1\t2\t644", (b"a", Config(1, 2, 0o644, 0))),
    ],
)
def test_spellings(line: str, config: tuple[bytes, Config]) -> None:
    assert parse_fs_config(line, "fc") == dict([config])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a 0 0", "3 fields"),
        (" 0 0", "3 fields"),
        ("a x 0 644", "user 'x'"),
        ("a 0 -1 644", "group '-1'"),
        ("a 4294967295 0 644", "user"),
        ("a 0 0 888", "mode '888'"),
        ("a 0 0 10644", "mode"),
        ("a 0 0 644 selabel=x", "unknown field 'selabel=x'"),
        ("a 0 0 644 capabilities=0x10000000000000000", "capabilities"),
        ("a 0 0 644 capabilities=09", "capabilities"),
        ("a 0 0 644 capabilities=", "capabilities"),
        ("a \u0661 0 644", "user"),
    ],
)
def test_bad_lines_are_named(line: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        parse_fs_config(f"b 0 0 644\n{line}\n", "dir/fc")
    assert caught.value.where == "dir/fc:2"


def test_capabilities_are_of_revision_2_and_effective() -> None:
    """As `setcap cap_net_raw+ep` stores it."""
    assert capability_value(1 << 13).hex() == "0100000200200000000000000000000000000000"
