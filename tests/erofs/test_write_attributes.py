# SPDX-License-Identifier: Apache-2.0
"""Attributes: shared or not, long prefixes, the name filter; ACLs and capabilities are preserved."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treediff import diff
from writer_check import fsck_differences, kernel_differences, write
from writer_trees import file, text

from erofs_edge.erofs.check import check
from erofs_edge.erofs.gate import parse_kernel
from erofs_edge.erofs.ondisk import COMPAT_PLAIN_XATTR_PFX, COMPAT_XATTR_FILTER, INCOMPAT_XATTR_PREFIXES
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError, UsageError
from erofs_edge.tree import FileTree, Inode

# user::rw-, user:1000:r--, group::r--, mask::r--, other::---
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 4, 1000, 4, 4, 0xFFFFFFFF, 16, 4, 0xFFFFFFFF, 32, 0,
                  0xFFFFFFFF)  # fmt: skip
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
PREFIXES = (b"user.", b"user.mime.", b"user.mime.type.", b"trusted.overlay.", b"security.")


def tree() -> FileTree:
    made = FileTree()
    for i in range(8):
        xattrs = {b"user.mime.type.kind": b"text" * (i % 3), b"user.mime.": b"x", b"user.u": b"%d" % (i // 4)}
        if i % 2:
            xattrs |= {b"trusted.overlay.opaque": b"y", b"security.selinux": b"u:r:t" * (i % 4)}
        made.add(f"d{i % 2}/{i}", file(text(3000 * i, i), xattrs=xattrs))
    made.add("ping", file(b"#!", xattrs={b"security.capability": CAPABILITY}))
    made.add("acl", Inode(0o100640, xattrs={b"system.posix_acl_access": ACL}))
    default = {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}
    made.add("dir", Inode(0o40750, xattrs=default))
    made.root.xattrs = {b"user.mime.type.kind": b"text"}
    return made


OPTIONS: list[dict[str, Any]] = [
    {"xattr_prefixes": PREFIXES},
    {"xattr_prefixes": PREFIXES[1:2], "xattr_tolerance": 0, "compression": "none"},
    {"xattr_prefixes": PREFIXES, "xattr_tolerance": 100, "xattr_filter": False},
    {"xattr_tolerance": 1, "block_size": 1024},
    {"xattr_filter": False},
    {"xattr_prefixes": PREFIXES, "fragments": "tails", "pcluster": 65536},
    {"xattr_prefixes": PREFIXES, "chunk_size": 4096, "dedupe": True},
]


@pytest.mark.root
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_the_kernel_our_reader_and_check(needs_root: None, tmp_path: Path, options: dict[str, Any]) -> None:
    write(tree(), image := tmp_path / "i", **{"compression": "lz4", **options})
    assert kernel_differences(image, tree()) == []
    with Image(image) as opened:
        assert diff(opened.tree(), tree()) == []
    assert check(image).findings == []


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_through_fsck(oracle: Callable[[str], str], tmp_path: Path, options: dict[str, Any]) -> None:
    write(tree(), image := tmp_path / "i", **{"compression": "lz4", **options})
    assert fsck_differences(oracle, image, tree()) == []


def test_the_filter_and_the_prefixes_are_announced(tmp_path: Path) -> None:
    write(tree(), tmp_path / "i", xattr_prefixes=PREFIXES, xattr_filter=False)
    with Image(tmp_path / "i") as image:
        raw = image.superblock.raw
        assert image.xattr_prefixes == list(PREFIXES)
        assert image.xattr_area(image.lookup("d1/1")).filter == 0
    assert raw.feature_incompat & INCOMPAT_XATTR_PREFIXES
    assert raw.feature_compat & (COMPAT_PLAIN_XATTR_PFX | COMPAT_XATTR_FILTER) == COMPAT_PLAIN_XATTR_PFX


def test_long_prefixes_beside_a_packed_inode_need_a_newer_kernel(tmp_path: Path) -> None:
    """Before 6.17, kernels look for the table in the packed inode if there is one."""
    options: dict[str, Any] = {"xattr_prefixes": PREFIXES, "fragments": "all", "pcluster": 65536}
    assert write(tree(), tmp_path / "i", **options).minimum_kernel == (6, 17)
    assert write(tree(), tmp_path / "i", xattr_prefixes=PREFIXES).minimum_kernel == (6, 4)
    with pytest.raises(UsageError, match=r"Linux 6\.6 cannot mount this image: -E plain-xattr-prefixes needs 6\.17"):
        write(tree(), tmp_path / "none", kernel=parse_kernel("6.6"), **options)
    assert not (tmp_path / "none").exists()


def test_the_tolerance_decides_what_is_shared(tmp_path: Path) -> None:
    """user.u is b"0" four times and b"1" four times; the kinds are b"text" four times, b"" and b"texttext" less."""
    shared = []
    for tolerance in (0, 2, 3, 4, 100):
        write(tree(), tmp_path / "i", xattr_tolerance=tolerance)
        with Image(tmp_path / "i") as image:
            shared.append(len({s for _, inode in image.walk() for s in image.xattr_area(inode).shared}))
            assert diff(image.tree(), tree()) == []
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > shared[1] >= shared[3] > shared[4] == 0


def test_no_attributes_at_all(tmp_path: Path) -> None:
    write(tree(), tmp_path / "i", xattr_tolerance=-1)
    bare = tree()
    for _, inode in bare.walk():
        inode.xattrs = {}
    with Image(tmp_path / "i") as image:
        assert diff(image.tree(), bare) == []
        assert not image.superblock.raw.feature_compat & COMPAT_XATTR_FILTER


def test_more_attributes_than_one_inode_can_share(tmp_path: Path) -> None:
    """What no inode refers to is not stored as shared."""
    made = FileTree()
    many = {b"user.%03d" % number: b"v" for number in range(300)}
    made.add("a", file(b"", xattrs=many))
    made.add("b", file(b"", xattrs=many))
    made.add("c", file(b"", xattrs={b"user.299": b"v"}))
    write(made, image := tmp_path / "i", xattr_tolerance=0)
    assert check(image).findings == []
    with Image(image) as opened:
        assert diff(opened.tree(), made) == []


@pytest.mark.parametrize("name", [b"user." + b"n" * 251, b"trusted." + b"n" * 248])
def test_names_are_no_longer_than_linux_reads(tmp_path: Path, name: bytes) -> None:
    made = FileTree()
    made.add("a", file(b"", xattrs={name[:-1]: b"v"}))
    write(made, tmp_path / "i")
    made.add("a", file(b"", xattrs={name: b"v"}))
    with pytest.raises(SourceError, match="attribute name of 256 bytes") as caught:
        write(made, tmp_path / "i")
    assert caught.value.where == "/a"


@pytest.mark.parametrize(
    "wrong", [b"", b"use", b"system.posix_acl_access", b"lustre.x", b"user.a\0", b"user." + b"n" * 256]
)
def test_prefixes_that_cannot_be(wrong: bytes) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        WriteOptions(xattr_prefixes=(wrong,))


@pytest.mark.parametrize("wrong", [(b"user.a", b"user.a"), tuple(b"user.%d" % i for i in range(129))])
def test_too_many_prefixes(wrong: tuple[bytes, ...]) -> None:
    with pytest.raises(UsageError, match="more than 128"):
        WriteOptions(xattr_prefixes=wrong)


@pytest.mark.oracle
def test_attributes_through_mkfs_and_back(oracle: Callable[[str], str], needs_root: None, tmp_path: Path) -> None:
    """mkfs.erofs on our mounted image finds the same attributes, with the same long prefixes."""
    write(tree(), image := tmp_path / "i", xattr_prefixes=PREFIXES)
    target = tmp_path / "mnt"
    target.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(target)], check=True)
    try:
        prefixes = [f"--xattr-prefix={prefix.decode()}" for prefix in PREFIXES]
        argv = [oracle("mkfs.erofs-1.9"), *prefixes, "--quiet", str(tmp_path / "theirs"), str(target)]
        subprocess.run(argv, check=True)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    with Image(image) as ours, Image(tmp_path / "theirs") as theirs:
        assert theirs.xattr_prefixes == ours.xattr_prefixes
        assert [(p, i.xattrs) for p, i in theirs.tree().walk()] == [(p, i.xattrs) for p, i in ours.tree().walk()]


suffix = st.text("ab.", min_size=1, max_size=8).map(str.encode)
names = st.builds(lambda base, rest: base + rest, st.sampled_from([b"user.", b"trusted.", b"security."]), suffix)


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sets=st.lists(st.dictionaries(names, st.binary(max_size=40), max_size=6), min_size=1, max_size=6),
    prefixes=st.sets(names, max_size=5),
    tolerance=st.integers(0, 3),
)
def test_any_attributes_through_the_kernel(
    needs_root: None, sets: list[dict[bytes, bytes]], prefixes: set[bytes], tolerance: int
) -> None:
    made = FileTree()
    for i, xattrs in enumerate(sets):
        made.add(str(i), file(b"", xattrs=xattrs))
    with tempfile.TemporaryDirectory() as folder:
        write(made, image := Path(folder) / "i", xattr_prefixes=tuple(sorted(prefixes)), xattr_tolerance=tolerance)
        assert kernel_differences(image, made) == []
