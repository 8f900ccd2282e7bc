# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of contents, against mkfs.erofs --xattr-inode-digest (1.9): equal values, in each other's images."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.gate import superblock_features
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.told_digests import hash_file
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.sources.directory import scan


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"hello\n")
    (folder / "sub/b").write_bytes(bytes(range(256)) * 300)
    for name in ("c", "d", "e"):
        (folder / name).write_bytes(b"the same, three times\n")
    os.link(folder / "a", folder / "hard")
    (folder / "empty").touch()
    (folder / "link").symlink_to("a")
    return folder


def prints(path: Path) -> dict[bytes, bytes | None]:
    with Image(path) as image:
        return {name: image.fingerprint(inode) for name, inode in image.walk()}


@pytest.mark.parametrize(
    "options",
    [
        WriteOptions(compression="none"),
        WriteOptions(compression="lz4hc", pcluster=65536, fragments="all", dedupe=True),
        WriteOptions(compression="none", xattr_prefixes=(b"user.app.",), chunk_size=4096),
    ],
    ids=["plain", "fragments", "chunks"],
)
def test_every_file_has_its_own(
    source: Path, tmp_path: Path, options: WriteOptions, oracle: Callable[[str], str]
) -> None:

    before = {path: dict(inode.xattrs) for path, inode in scan(source).walk()}
    tree, image = scan(source), tmp_path / "image"
    info = write_image(tree, image, options.replaced(fingerprints=True))
    assert "ishare_xattrs" in info.features
    assert {path: inode.xattrs for path, inode in tree.walk()} == before, "the caller's tree stays as it is"
    for name, value in prints(image).items():
        path = source / os.fsdecode(name).lstrip("/")
        wanted = path.is_file() and not path.is_symlink() and path.stat().st_size
        assert value == (b"sha256:" + hashlib.sha256(path.read_bytes()).digest() if wanted else None), name
    with Image(image) as opened:
        raw = opened.superblock.raw
        assert raw.feature_compat & ondisk.COMPAT_ISHARE_XATTRS
        assert opened.xattr_prefixes[raw.ishare_xattr_prefix_id] == b"erofs.fingerprint.v1"
        assert "ishare_xattrs" in superblock_features(raw)
        assert all(opened.xattrs(inode) == {} for _, inode in opened.walk()), "no system call shows them"
    assert not check(image).findings
    subprocess.run([oracle("fsck.erofs-1.9"), image], check=True, capture_output=True)
    again = tmp_path / "again"
    write_image(scan(source), again, options.replaced(fingerprints=True))
    assert again.read_bytes() == image.read_bytes()


def test_mkfs_says_the_same(source: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    subprocess.run(
        [oracle("mkfs.erofs-1.9"), "-T0", "--quiet", "--xattr-inode-digest", theirs, source], check=True
    )  # fmt: skip
    write_image(scan(source), ours, WriteOptions(compression="none", epoch=0, times="fixed", fingerprints=True))
    assert prints(ours) == prints(theirs)
    assert not check(theirs).findings
    with Image(theirs) as one, Image(ours) as other:
        assert one.xattr_prefixes == other.xattr_prefixes
        filters = [
            {name: image.xattr_area(inode).filter for name, inode in image.walk() if inode.xattr_size}
            for image in (one, other)
        ]
    assert filters[0] == filters[1]


def test_check_knows_a_fingerprint_of_other_content(source: Path, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """As fsck.erofs --xattr-inode-digest does, also for holes and compressed files."""
    (source / "hole").write_bytes(bytes(3 << 20) + b"end")
    image = tmp_path / "image"
    options = WriteOptions(compression="lz4", pcluster=65536, fragments="tails", fingerprints=True, checksum=False)
    write_image(scan(source), image, options)
    assert not check(image).findings
    raw, fsck = bytearray(image.read_bytes()), [oracle("fsck.erofs-1.9"), "--xattr-inode-digest", image]
    assert subprocess.run(fsck, capture_output=True, check=False).returncode == 0
    for path, change, message in (
        ("hole", -1, "not that of the content"),
        ("sub/b", -1, "not that of the content"),
        ("c", -39, "of no known form"),
    ):
        told = b"sha256:" + hashlib.sha256((source / path).read_bytes()).digest()
        damaged = bytearray(raw)
        damaged[raw.index(told) + len(told) + change] ^= 1
        image.write_bytes(damaged)
        errors = check(image).errors
        assert [message in str(error) for error in errors] == [True] * (3 if path == "c" else 1), errors
        assert subprocess.run(fsck, capture_output=True, check=False).returncode != 0


def test_a_superblock_that_names_no_prefix(source: Path, tmp_path: Path) -> None:

    image = tmp_path / "image"
    write_image(scan(source), image, WriteOptions(compression="none", fingerprints=True, checksum=False))
    raw = bytearray(image.read_bytes())
    assert raw[ondisk.SUPER_OFFSET + 105] == 0
    raw[ondisk.SUPER_OFFSET + 105] = 7
    image.write_bytes(raw)
    with pytest.raises(ErofsFormatError), Image(image) as opened:
        for _, inode in opened.walk():
            opened.fingerprint(inode)


def test_without_them_nothing_changes(source: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    write_image(scan(source), image, WriteOptions(compression="none"))
    assert set(prints(image).values()) == {None}


def test_a_large_hole_costs_no_memory(tmp_path: Path) -> None:
    """Holes are hashed as zeros, in pieces: an image may claim any size."""

    class State:
        def __init__(self) -> None:
            self.digest, self.longest = hashlib.sha256(), 0

        def update(self, data: bytes) -> None:
            self.digest.update(data)
            self.longest = max(self.longest, len(data))

    (tmp_path / "source").mkdir()
    with (tmp_path / "source/f").open("wb") as file:
        file.seek(20 << 20)
        file.write(b"between holes")
        file.truncate(40 << 20)
    write_image(scan(tmp_path / "source"), tmp_path / "image", WriteOptions(compression="none", chunk_size=4096))
    one, other = State(), State()
    with Image(tmp_path / "image") as image:
        hash_file(image, image.lookup("/f"), one, other)  # type: ignore[arg-type]
    expected = hashlib.sha256((tmp_path / "source/f").read_bytes()).digest()
    assert one.digest.digest() == other.digest.digest() == expected
    assert one.longest <= 1 << 20
