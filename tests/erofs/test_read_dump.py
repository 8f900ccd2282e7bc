# SPDX-License-Identifier: Apache-2.0
"""Dumps: the fields that dump.erofs prints have the same values here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from reader_trees import UUID, make_tree, mkfs

from erofs_edge.erofs.dump import extent_fields, inode_fields, statistics, superblock_fields
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.read import Image

Oracle = Callable[[str], str]
OPTIONS = ["-zlz4", "-C16384", "-Efragments,ztailpacking", "-T1000000"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    root = tmp_path_factory.mktemp("dump")
    return mkfs(oracle("mkfs.erofs-1.9"), root / "image", make_tree(root / "tree"), OPTIONS)


@pytest.fixture(scope="module")
def dumped(path: Path, oracle: Oracle) -> Callable[..., str]:
    def run(*options: str) -> str:
        argv = [oracle("dump.erofs-1.9"), *options, str(path)]
        return subprocess.run(argv, capture_output=True, check=True).stdout.decode("utf-8", "replace")

    return run


def value(output: str, label: str) -> str:
    found = re.search(rf"^{re.escape(label)}:?\s+(.*?)\s*$", output, re.MULTILINE)
    assert found, label
    return found[1]


def test_superblock(path: Path, dumped: Callable[..., str]) -> None:
    theirs = dumped("-s")
    with Image(path) as image:
        ours = superblock_fields(image)
    for key, label in {
        "block_size": "Filesystem blocksize",
        "blocks": "Filesystem blocks",
        "meta_blkaddr": "Filesystem inode metadata start block",
        "xattr_blkaddr": "Filesystem shared xattr metadata start block",
        "root_nid": "Filesystem root nid",
        "packed_nid": "Filesystem packed nid",
        "inodes": "Filesystem inode count",
        "uuid": "Filesystem UUID",
    }.items():
        assert str(ours[key]) == value(theirs, label), key
    assert ours["uuid"] == UUID
    assert int(str(ours["magic"]), 16) == int(value(theirs, "Filesystem magic number"), 16)
    for key, label in (("features_compat", "compatible"), ("features_incompat", "incompatible")):
        assert " ".join(ours[key]) == value(theirs, f"Filesystem {label} features")  # type: ignore[arg-type]
    assert (ours["checksum"], ours["epoch"], ours["algorithms"]) == ("ok", 1_000_000, ["lz4"])


@pytest.mark.parametrize("name", ["mixed", "long", "many", "size-1", "noise-5000", "link"])
def test_inode_and_extents(name: str, path: Path, dumped: Callable[..., str]) -> None:
    theirs = dumped("-e", f"--path=/{name}")
    with Image(path) as image:
        inode = image.lookup(name, follow=False)
        ours = inode_fields(image, inode)
        extents = [extent_fields(extent) for extent in image.extents(inode)]
    numbers = {key: int(number) for key, number in re.findall(r"(\w+): +(\d+)", theirs)}
    assert (ours["nid"], ours["links"], ours["layout"]) == (numbers["NID"], numbers["Links"], numbers["Layout"])
    assert (ours["size"], ours["uid"], ours["gid"]) == (numbers["Size"], numbers["Uid"], numbers["Gid"])
    sizes = re.search(r"Inode size: (\d+) +Xattr size: (\d+)", theirs)
    assert sizes
    assert (ours["inode_size"], ours["xattr_size"]) == (int(sizes[1]), int(sizes[2]))
    assert str(ours["mode"])[1:] == value(theirs, "Uid").split("Access: ")[1].split("/")[0][1:]
    rows = re.findall(r"^ *\d+: +(\d+)\.\. *(\d+) \| +\d+ : +(\d+)\.\. *(\d+) \|", theirs, re.MULTILINE)
    assert [tuple(map(int, row[:2])) for row in rows] == [
        (e["start"], e["start"] + e["length"]) for e in extents  # type: ignore[operator]
    ]  # fmt: skip
    if ours["layout"] in (1, 3):
        stored = [(e["address"], e["size"]) for e in extents if e["kind"] != Kind.FRAGMENT.value]
        assert [(int(a), int(b) - int(a)) for _, _, a, b in rows if b != "0"] == stored


def test_statistics(path: Path, dumped: Callable[..., str]) -> None:
    theirs = dumped("-S")
    with Image(path) as image:
        ours = statistics(image)
    for kind, label in (("regular file", "regular file"), ("directory", "directory"), ("symlink", "symlink file")):
        names = int(value(theirs, f"Filesystem {label} count"))
        assert ours.types[kind] == names - 2 * (kind == "regular file")  # it counts the names of "long", we count files
    assert ours.compressed_files + ours.uncompressed_files == ours.types["regular file"]
    assert ours.layouts["compressed full"] > 100
    assert 0 < ours.stored_size < ours.original_size
    assert ours.packed_size > 0


def test_size_distributions_are_those_of_dump_erofs(path: Path, dumped: Callable[..., str]) -> None:
    """dump.erofs counts "long" and its two other names as three files, and the packed inode by its stored size."""
    theirs = dumped("-S").split("distribution:\n")
    with Image(path) as image:
        ours = statistics(image)
        long = image.lookup("long")
    rows = [[int(n) for n in re.findall(r"^ *\d+ \.\. *\d* +\t(\d+) ", part, re.MULTILINE)] for part in theirs[1:3]]
    again = (long.size >> 10).bit_length()
    assert rows[0][again] - 2 == ours.sizes[again]
    rows[0][again] -= 2
    assert rows[0] == ours.sizes
    assert sum(ours.stored_sizes) == sum(rows[1]) - 3 == ours.types["regular file"]
    assert 0 < ours.ratio < 0.5


def test_ends_of_names(tmp_path: Path, oracle: Oracle) -> None:
    names = ["a.so", "libc.so.6.1", "b.txt", "README", ".profile", "1.5", ".x.conf"]
    source = tmp_path / "tree"
    source.mkdir()
    for name in names:
        (source / name).touch()
    with Image(mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, [])) as image:
        assert statistics(image).extensions == {"": 3, ".so": 2, ".conf": 1, ".txt": 1}
