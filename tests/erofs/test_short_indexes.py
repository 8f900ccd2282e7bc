# SPDX-License-Identifier: Apache-2.0
"""Indexes of files with one extent, which are compared instead of decoded: the extents are the same, and the errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reader_trees import mkfs, noise, text

from erofs_edge.erofs import zmap as zmaps
from erofs_edge.erofs.backing import Backing
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.lclusters import Entry, entries
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.sources.directory import scan

Oracle = Callable[[str], str]
SIZES = [*range(4097, 40 * 4096, 4096), *range(8192, 30 * 4096, 3 * 4096), 4100, 5000, 70_000, 300_001]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for size in SIZES:
        (folder / f"{size}").write_bytes(text(size // 28 + 1)[:size])
        (folder / f"{size}-noisy").write_bytes((text(size // 56) + noise(9000, size) + text(size // 28 + 1))[:size])
    return folder


@pytest.fixture(
    scope="module", params=["-zlz4 -C65536", "-zlz4 -C4096", "-zlz4 -C16384 -Eztailpacking", "ours", "large"]
)
def path(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle
) -> Path:
    out = tmp_path_factory.mktemp("images") / "image"
    if request.param in ("ours", "large"):
        block = 4096 if request.param == "ours" else 16384
        options = WriteOptions(compression="lz4hc", level=9, pcluster=65536, block_size=block)
        write_image(scan(source), out, options)
        return out
    return mkfs(oracle("mkfs.erofs-1.9"), out, source, request.param.split())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[ZMap]:
    """The indexes that were decoded."""
    seen: list[ZMap] = []

    def counted(backing: Backing, zmap: ZMap, lcn: int) -> Iterator[Entry]:
        seen.append(zmap)
        return entries(backing, zmap, lcn)

    monkeypatch.setattr(zmaps, "entries", counted)
    monkeypatch.setattr(zmaps, "_sole_rests", {})
    return seen


def compressed(image: Image) -> list[DiskInode]:
    return [inode for _, inode in image.walk() if inode.is_compressed and inode.size]


def test_the_extents_are_those_of_a_decoded_index(path: Path, decoded: list[ZMap]) -> None:
    with Image(path) as image:
        found = compressed(image)
        assert len(found) > len(SIZES) // 2
        for inode in found:
            assert list(image.extents(inode)) == list(image.extents(inode, strict=True))  # strict ones are decoded
            assert list(image.extents(inode, inode.size - 1)) == list(image.extents(inode))[-1:]


def test_those_of_one_form_are_decoded_once(tmp_path: Path, source: Path, decoded: list[ZMap]) -> None:
    for number in range(9):
        (tmp_path / f"tree/{number}").mkdir(parents=True)
        (tmp_path / f"tree/{number}/file").write_bytes(text(3000, str(number))[: 70_000 + number])
    write_image(scan(tmp_path / "tree"), tmp_path / "image", WriteOptions(compression="lz4", pcluster=65536))
    with Image(tmp_path / "image") as image:
        extents = [list(image.extents(inode)) for inode in compressed(image)]
    assert [len(some) for some in extents] == [1] * 9
    assert {some[0].length for some in extents} == set(range(70_000, 70_009))
    assert len({some[0].address for some in extents}) == 9
    assert len(decoded) <= 2  # compact inodes and extended ones


def said(image: Image, inode: DiskInode) -> object:
    """What reading an inode's map gives, or the error."""
    try:
        return list(image.extents(inode))
    except ErofsFormatError as error:
        return error.message, error.where


def test_damage_is_found_as_in_a_decoded_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.read_bytes()
    different = 0
    with Image(path) as image, monkeypatch.context() as patches:
        small = [inode for inode in compressed(image) if inode.size < 80_000][::7]
        for inode in small:
            zmap = image.zmap(inode)
            good = said(image, inode)
            for bit in range(8 * zmap.index_size):
                data = bytearray(whole)
                data[zmap.position + bit // 8] ^= 1 << bit % 8
                patches.setattr(image.backing, "_map", bytes(data))
                fast = said(image, inode)
                patches.setattr(zmaps, "_SHORT", 0)
                assert said(image, inode) == fast
                patches.setattr(zmaps, "_SHORT", 512)
                different += fast != good
        patches.undo()
    assert different > 100
