# SPDX-License-Identifier: Apache-2.0
"""Checks beyond those of fsck.erofs: name filters, block counts, and the share of data that decompresses in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mutate import seal
from reader_trees import mkfs, noise, text
from writer_check import write
from writer_trees import file

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.inplace import InPlace, obstacle
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.tree import FileTree

Oracle = Callable[[str], str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("more") / "tree"
    root.mkdir()
    (root / "text").write_bytes(text(30_000))
    (root / "mixed").write_bytes(text(3000) + noise(9000) + text(3000))
    os.setxattr(root / "text", "user.k", b"v")
    return root


def made(source: Path, path: Path, oracle: Oracle, options: str) -> Path:
    return mkfs(oracle("mkfs.erofs-1.9"), path, source, options.split())


def test_a_filter_that_hides_an_attribute(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = made(source, tmp_path / "image", oracle, "-T0")
    with Image(path) as image:
        inode = image.lookup("text")
    at = inode.offset + inode.header_size
    data = bytearray(path.read_bytes())
    assert data[at : at + 4] == b"\xff\xbf\xff\xff"
    data[at + 1] |= 0x40
    path.write_bytes(seal(data))
    (finding,) = check(path).findings
    assert (finding.message, finding.where, finding.path) == (
        "the name filter hides user.k", f"offset {at:#x}", "/text"
    )  # fmt: skip
    data[at : at + 4] = bytes(4)  # nothing is hidden, everything may be there
    path.write_bytes(seal(data))
    assert check(path).findings == []
    data[at : at + 4] = b"\xff" * 4
    data[1024 + 8] &= ~ondisk.COMPAT_XATTR_FILTER  # kernels do not look
    path.write_bytes(seal(data))
    assert check(path).findings == []


def test_a_count_of_blocks_that_is_wrong(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = made(source, tmp_path / "image", oracle, "-zlz4 -T0")
    with Image(path) as image:
        inode = image.lookup("mixed")
    data = bytearray(path.read_bytes())
    data[inode.offset + 16] += 1
    path.write_bytes(seal(data))
    (finding,) = check(path).findings
    assert (finding.severity, finding.path) == ("warning", "/mixed")
    assert f"counts {inode.block + 1} compressed blocks, there are {inode.block}" in finding.message


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ("-zlz4 -C16384", {"margin"}),
        ("-zlz4 -Eztailpacking", {"inline", "margin"}),
        ("-zzstd -C16384", {"algorithm"}),
        ("-zlz4 -C16384 --max-extent-bytes=16384", {"margin"}),
        ("", set()),
    ],
)
def test_in_place_reasons(options: str, reasons: set[str], source: Path, tmp_path: Path, oracle: Oracle) -> None:
    report = check(made(source, tmp_path / "image", oracle, options))
    found = report.in_place
    assert set(found.reasons) <= reasons
    assert found.data_bytes == found.eligible_bytes + sum(found.reasons.values())
    assert (found.data_bytes > 0) == bool(options)
    if "max-extent" in options:  # extents end where pages do: no room for the margin
        assert found.share < 0.2
    elif options == "-zlz4 -C16384":
        assert found.share > 0.5


def test_each_obstacle(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    with Image(made(source, tmp_path / "image", oracle, "-zlz4 -C16384")) as image:
        first = next(e for e in image.extents(image.lookup("text")) if e.kind is Kind.ENCODED)
        backing, info = image.backing, image.superblock
        stream = len(backing.read(first.address, first.size, "").lstrip(b"\0"))
        margin = (stream >> 8) + 32
        # the extent's end decides: exactly the margin before the end of a page is enough
        end = -(-(first.start + first.length) // 4096) * 4096 - margin
        assert obstacle(backing, info, first._replace(length=end - first.start)) is None
        assert obstacle(backing, info, first._replace(length=end + 1 - first.start)) == "margin"
        assert obstacle(backing, info, first._replace(length=3 * 4096)) == "size"
        assert obstacle(backing, info, first._replace(partial=True)) == "partial"
        assert obstacle(backing, info, first._replace(inline=True)) == "inline"
        assert obstacle(backing, info, first._replace(algorithm=ondisk.ALGORITHM_ZSTD)) == "algorithm"
        assert InPlace().share == 1.0


@pytest.mark.parametrize(
    ("block_size", "most"), [(512, 256), (1024, 256), (4096, 256), (16384, 64), (65536, 16)], ids=str
)
def test_lz4_pclusters_that_no_kernel_reads(block_size: int, most: int, tmp_path: Path) -> None:
    """At most 1 MiB, and at most the 256 pages of the kernel's buffer, counted in blocks."""
    tree = FileTree()
    tree.add("f", file(text(40_000)))
    path = tmp_path / "image"
    write(tree, path, compression="lz4", block_size=block_size, pcluster=2 * block_size)
    at = ondisk.SUPER_OFFSET + ondisk.SUPER_SIZE + 4  # behind the record's length and its distance
    for blocks in (most, most + 1):
        data = bytearray(path.read_bytes())
        assert data[at - 4 : at - 2] == b"\x0e\0"
        data[at : at + 2] = blocks.to_bytes(2, "little")
        path.write_bytes(seal(data))
        if blocks == most:
            assert check(path).findings == []
            continue
        with pytest.raises(ErofsFormatError, match=f"LZ4 pclusters of {blocks} blocks are over the {most}") as caught:
            Image(path)
        assert caught.value.where == f"offset {at - 4:#x}"


def test_what_was_not_looked_at_is_not_said_to_belong_to_nothing(source: Path, tmp_path: Path, oracle: Oracle) -> None:
    path = made(source, tmp_path / "image", oracle, "-T0 -zlz4")
    assert check(path).findings == []
    messages = [finding.message for finding in check(path, limit=20_000).findings]
    assert messages and all("far more data than it should hold" in message for message in messages)
