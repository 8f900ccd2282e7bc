# SPDX-License-Identifier: Apache-2.0
"""Our reader on images by three generations of mkfs.erofs, compared strictly with the source tree."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from mutate import seal
from reader_trees import EPOCH, make_tree, mkfs
from treediff import diff, scan

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]
ALL, NEW, NEWEST = ("1.5", "1.8", "1.9"), ("1.8", "1.9"), ("1.9",)
MATRIX: list[tuple[tuple[str, ...], str]] = [
    (ALL, ""),
    (ALL, "-zlz4"),
    (ALL, "-zlz4 -C65536"),
    (ALL, "-zlz4hc,9 -C16384"),
    (NEW, "-zlz4 -C1048576"),
    (ALL, "-zlz4 -C32768 -Elegacy-compress"),
    (ALL, "-zlz4 -Eztailpacking"),
    (NEW, "-zlz4hc -C65536 -Eztailpacking"),
    (NEW, "-zlz4 -Efragments"),
    (NEW, "-zlz4 -C65536 -Eall-fragments"),
    (NEW, "-zlz4 -Ededupe"),
    (NEW, "-zlz4 -C16384 -Ededupe,all-fragments,ztailpacking"),
    (NEW, "-zlz4 -C16384 -Efragments,ztailpacking"),
    (ALL, "--chunksize=4096"),
    (ALL, "--chunksize=65536 -Eforce-chunk-indexes"),
    (NEW, "--chunksize=8192 -b512"),
    (NEW, "-b512 -zlz4"),
    (NEW, "-b1024 -zlz4 -C8192"),
    (NEW, "-b2048 -zlz4 -C8192 -Eztailpacking"),
    (NEW, "-zlz4 --xattr-prefix=user.on.a -x1"),
    (NEWEST, "--xattr-prefix=user.sh -Eplain-xattr-prefixes -x1"),
    (NEWEST, "--xattr-prefix=user.sh -zlz4 -Efragments -x1"),
    (NEWEST, "-zlz4 --zD=1"),
    (ALL, "-Eforce-inode-extended"),
    (NEW, "-zlz4 -Enoinline_data"),
    (NEWEST, "-zlz4 -C65536 --max-extent-bytes=65536"),
    (ALL, "-Enosbcrc"),
    (NEW, "-x1 -zlz4 -Lname"),
    (NEW, "-x1 -E^xattr-name-filter"),
    (NEW, "-zlzma,level=1,dictsize=65536 -C65536"),
    (NEW, "-zdeflate,1 -C8192 -Eztailpacking"),
    (NEW, "-zzstd,level=3,dictsize=65536 -C16384 -Efragments"),
    (("1.8",), "-zlz4hc,9:zstd:deflate --compress-hints=HINTS -C65536"),  # 1.9.4 crashes
]
HINTS = "4096 0 ^mixed$\n16384 1 long\n65536 2 repeat\n0 zeros\n"
CASES = [(version, options) for versions, options in MATRIX for version in versions]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def expected(source: Path) -> FileTree:
    return scan(source)


@pytest.mark.parametrize(("version", "options"), CASES, ids=lambda value: value)
def test_reads_what_mkfs_wrote(
    version: str, options: str, source: Path, expected: FileTree, tmp_path: Path, oracle: Oracle
) -> None:
    (tmp_path / "hints").write_text(HINTS)
    options = options.replace("HINTS", str(tmp_path / "hints"))
    path = mkfs(oracle(f"mkfs.erofs-{version}"), tmp_path / "image", source, options.split())
    with Image(path) as image:
        assert diff(image.tree(), expected) == []
    report = check(path)
    assert report.ok, report.findings
    assert report.files == len({id(inode) for _, inode in expected.walk() if inode.is_file})


@pytest.mark.parametrize("block_size", [512, 2048, 16384, 65536])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_reads_blocks_that_mkfs_cannot_make_here(
    block_size: int, compression: str, expected: FileTree, tmp_path: Path
) -> None:
    options = WriteOptions(
        block_size=block_size, compression=compression, pcluster=65536 if compression != "none" else None
    )
    write_image(expected, tmp_path / "image", options)
    with Image(tmp_path / "image") as image:
        assert image.superblock.block_size == block_size
        assert diff(image.tree(), expected) == []
    assert check(tmp_path / "image").findings == []


def test_compact_inodes_take_the_time_of_the_image(
    source: Path, expected: FileTree, tmp_path: Path, oracle: Oracle
) -> None:
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, [f"-T{EPOCH}", "--all-root", "-zlz4"])
    with Image(path) as image:
        tree = image.tree()
        assert not image.inode(image.root_nid).extended
        assert {inode.mtime_ns for _, inode in tree.walk()} == {EPOCH * 1_000_000_000}
        assert {(inode.uid, inode.gid) for _, inode in tree.walk()} == {(0, 0)}
        assert diff(tree, expected, owners=False, times=False) == []


@pytest.fixture(scope="module")
def everything(source: Path, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    """An image with every kind of extent that mkfs.erofs makes in compressed files."""
    options = ["-zlz4", "-C16384", "-Efragments,ztailpacking"]
    return mkfs(oracle("mkfs.erofs-1.9"), tmp_path_factory.mktemp("images") / "image", source, options)


@pytest.mark.parametrize("name", ["long", "mixed", "repeat", "twin", "sparse", "size-4097"])
def test_reads_any_part_of_a_file(name: str, source: Path, everything: Path) -> None:
    data = (source / name).read_bytes()
    rng = random.Random(name)
    with Image(everything) as image:
        inode = image.lookup(name)
        for _ in range(40):
            offset = rng.randrange(len(data) + 10)
            length = rng.choice([0, 1, 100, 4096, 100_000, len(data)])
            assert image.read(inode, offset, length) == data[offset : offset + length]
        assert b"".join(piece for _, piece in image.stream(inode)) == data


def test_extents_cover_a_file_from_any_byte(everything: Path) -> None:
    with Image(everything) as image:
        inode = image.lookup("mixed")
        whole = list(image.extents(inode))
        assert {extent.kind for extent in whole} >= {Kind.ENCODED, Kind.ROTATED, Kind.FRAGMENT}
        for index, extent in enumerate(whole):
            for byte in (extent.start, extent.start + extent.length - 1):
                assert list(image.extents(inode, byte)) == whole[index:]
        assert list(image.extents(inode, inode.size)) == []


def test_open_is_a_seekable_file(source: Path, everything: Path) -> None:
    data = (source / "mixed").read_bytes()
    with Image(everything) as image, image.open("/mixed") as raw, io.BufferedReader(raw) as handle:
        assert handle.read(10) == data[:10]
        assert handle.seek(-5, io.SEEK_END) == len(data) - 5
        assert handle.read() == data[-5:]
        assert handle.seek(200_000) == 200_000
        assert handle.read(5000) == data[200_000:205_000]
        with pytest.raises(ErofsEdgeError, match="not a regular file"):
            image.open("/many")


def test_lookup_follows_symlinks_inside_the_image_only(everything: Path) -> None:
    with Image(everything) as image:
        leaf = image.lookup("/deep/er/est/leaf")
        assert image.lookup("link/est/leaf") == leaf
        assert image.lookup("../../deep/er/../er/est//leaf") == leaf
        assert image.readlink(image.lookup("link", follow=False)) == b"deep/er"
        for path, message in [("dangling", "no such file"), ("long/x", "not a directory"), ("nope", "no such file")]:
            with pytest.raises(ErofsEdgeError, match=message):
                image.lookup(path)


def test_hard_links_are_one_inode(everything: Path) -> None:
    with Image(everything) as image:
        tree = image.tree()
        assert tree.get("long") is tree.get("third-name") is tree.get("deep/second-name") is not None
        assert tree.get("mixed") is not tree.get("twin")


def test_bytes_behind_the_image_do_not_matter(everything: Path, expected: FileTree, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    longer.write_bytes(everything.read_bytes() + random.Random(0).randbytes(100_000))
    with Image(longer) as image:
        assert diff(image.tree(), expected) == []


def test_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ErofsEdgeError, match="cannot open the image"):
        Image(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    with pytest.raises(ErofsFormatError, match="empty"):
        Image(tmp_path / "empty")
    (tmp_path / "short").write_bytes(bytes(ondisk.SUPER_OFFSET + 100))
    with pytest.raises(ErofsFormatError, match="outside the image"):
        Image(tmp_path / "short")


def test_the_packed_inode_cannot_refer_to_itself(everything: Path, tmp_path: Path) -> None:
    data = bytearray(everything.read_bytes())
    with Image(everything) as image:
        packed = image.packed
    assert packed.is_compressed
    start = -(-packed.body // 8) * 8
    data[packed.offset] = packed.extended | ondisk.LAYOUT_COMPRESSED_FULL << ondisk.LAYOUT_SHIFT
    data[start : start + 8] = (1 << 63).to_bytes(8, "little")  # all of it is a fragment at offset 0
    (tmp_path / "image").write_bytes(seal(data))
    with Image(tmp_path / "image") as image, pytest.raises(ErofsFormatError, match="refers to itself"):
        image.read(image.lookup("mixed"), 574_000, 1000)
    assert not check(tmp_path / "image").ok


def test_memory_does_not_grow_with_what_was_read(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.erofs.read.CACHE_BYTES", 300_000)
    with Image(everything) as image:
        for _, inode in image.walk():
            image.read(inode, 0, inode.size)
        cache = image._cache
        assert 0 < cache._held <= 300_000
        assert cache._held == sum(map(len, cache._items.values()))


@pytest.mark.parametrize(
    "options", ["", "-zlz4 -C65536", "-zlz4 -Eall-fragments", "--chunksize=4096", "-Enoinline_data"]
)
def test_content_is_lent_without_holes(options: str, source: Path, tmp_path: Path, oracle: Oracle) -> None:
    """In pieces that together are the content, whatever the layout; and it does not hinder closing."""
    path = mkfs(oracle("mkfs.erofs-1.9"), tmp_path / "image", source, options.split())
    with Image(path) as image:
        for name in ("size-1", "size-4097", "noise-70001", "noise-5000", "sparse", "zeros", "mixed"):
            inode = image.lookup(name)
            have = bytearray(inode.size)
            end = 0
            for offset, data in image.stream_lent(inode):
                assert offset >= end and len(data) > 0
                end = offset + len(data)
                have[offset:end] = data
            assert have == (source / name).read_bytes()
        kept = next(data for _, data in image.stream_lent(image.lookup("noise-70001")))
        assert bytes(kept[:100]) == (source / "noise-70001").read_bytes()[:100]
    del kept
