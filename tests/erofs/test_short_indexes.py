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


@pytest.mark.parametrize("strict", [False, True])
def test_the_extents_are_those_of_a_decoded_index(strict: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image(path) as image:
        inodes = compressed(image)
        assert len(inodes) > len(SIZES) // 2
        found = [list(image.extents(inode, strict=strict)) for inode in inodes]
        assert [list(image.extents(inode, inode.size - 1)) for inode in inodes] == [extents[-1:] for extents in found]
        monkeypatch.setattr(zmaps, "_SHORT", 0)
        assert [list(image.extents(inode, strict=strict)) for inode in inodes] == found


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


def said(image: Image, inode: DiskInode, strict: bool) -> list[object]:
    """What reading an inode's map gives, up to the error."""
    found: list[object] = []
    try:
        found.extend(image.extents(inode, strict=strict))
    except ErofsFormatError as error:
        found.append((error.message, error.where))
    return found


@pytest.mark.parametrize("strict", [False, True])
def test_damage_is_found_as_in_a_decoded_index(strict: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.read_bytes()
    different = 0
    with Image(path) as image, monkeypatch.context() as patches:
        small = [inode for inode in compressed(image) if inode.size < 80_000][::7]
        for inode in small:
            zmap = image.zmap(inode)
            good = said(image, inode, strict)
            for bit in range(8 * zmap.index_size):
                data = bytearray(whole)
                data[zmap.position + bit // 8] ^= 1 << bit % 8
                patches.setattr(image.backing, "_map", bytes(data))
                fast = said(image, inode, strict)
                patches.setattr(zmaps, "_SHORT", 0)
                assert said(image, inode, strict) == fast
                patches.setattr(zmaps, "_SHORT", 512)
                different += fast != good
        patches.undo()
    assert different > 100
