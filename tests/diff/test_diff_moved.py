# SPDX-License-Identifier: Apache-2.0
"""Files that have moved as a whole: reading the index alone gives the same result as decoding both indexes."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from erofs_edge.diff import erofs as compare
from erofs_edge.diff.moved import Shift, comparable, runs, shift_of
from erofs_edge.diff.paths import compare_paths
from erofs_edge.erofs import build
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.tree import BytesContent, FileTree, Inode

CHANCE = random.Random(3)
TEXT = b"".join(b"line %d of %d\n" % (i, i * i) for i in range(9000))
FILES = {
    "one": b"a" * 5000,
    "text": TEXT,
    "mixed": TEXT[:70_000] + CHANCE.randbytes(80_000) + bytes(50_000) + TEXT,
    "small": TEXT[:9000],
    "noise": CHANCE.randbytes(30_000),
    "tiny": b"x",
}
FORMS: dict[str, dict[str, object]] = {
    "4K": {},
    "64K": {"pcluster": 65536},
    "64K, 4 bytes": {"pcluster": 65536, "level": 12, "wide": True},
    "tails": {"pcluster": 65536, "ztailpacking": True},
    "full": {"full_index": True},
    "dedupe": {"dedupe": True},
    "none": {"compression": "none"},
    "chunks": {"compression": "none", "chunk_size": 4096},
}


def tree() -> FileTree:
    made = FileTree()
    for name, data in FILES.items():
        made.add(f"d/{name}", Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
    return made


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make two images of the same files in another order; keywords are options of both."""

    def made(**options: object) -> tuple[Path, Path]:
        common: dict[str, Any] = {"compression": "lz4hc", "epoch": 5, "jobs": 1} | options
        build(tree(), tmp_path / "old", **common)
        build(tree(), tmp_path / "new", profile=(b"d/text", b"d/small"), **common)
        return tmp_path / "old", tmp_path / "new"

    return made


def files(image: Image) -> Iterator[tuple[bytes, DiskInode]]:
    return ((path, inode) for path, inode in image.walk() if stat.S_ISREG(inode.mode) and inode.size)


def further(extent: Extent, shift: Shift) -> Extent:
    if extent.kind is Kind.HOLE:
        return extent
    return extent._replace(address=extent.address + (shift.inline if extent.inline else shift.blocks))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_is_told_with_and_without_it(
    pair: Callable[..., tuple[Path, Path]], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair(**FORMS[form])
    quick = asdict(compare_paths(old, new))
    monkeypatch.setattr(compare, "comparable", lambda one, other: False)
    assert asdict(compare_paths(old, new)) == quick
    assert "files with the same content" in json.dumps(quick)


@pytest.mark.parametrize("form", ["4K", "64K", "tails"])
def test_moved_extents_are_those_that_decoding_tells(pair: Callable[..., tuple[Path, Path]], form: str) -> None:
    old, new = pair(**FORMS[form])
    with Image(old) as one, Image(new) as other:
        assert comparable(one, other)
        there, moved = dict(files(other)), set()
        for path, before in files(one):
            shift = shift_of(one, other, before, there[path])
            if shift is not None:
                moved.add(path)
                extents = list(one.extents(before))
                assert [further(extent, shift) for extent in extents] == list(other.extents(there[path]))
                stored = sum(extent.size for extent in extents if extent.kind is not Kind.HOLE)
                assert sum(run.size for run in runs(extents, shift, 1 << 20)) == stored
                assert all(run.size <= 1 << 16 for run in runs(extents, shift, 1 << 16))
        assert moved >= {b"d/text", b"d/mixed", b"d/small"}


def test_no_bit_of_an_index_is_overlooked(pair: Callable[..., tuple[Path, Path]]) -> None:
    """Each bit of the new index is flipped: the file no longer counts as moved."""
    old, new = pair(pcluster=65536)
    with Image(new) as image:
        zmap = image.zmap(image.lookup("d/mixed"))
    told, fd = 0, os.open(new, os.O_RDWR)
    with Image(old) as one, Image(new) as other:  # which sees what is written to the file
        before, after = one.lookup("d/mixed"), other.lookup("d/mixed")
        assert shift_of(one, other, before, after) is not None
        for at in range(zmap.position, zmap.position + zmap.index_size):
            (byte,) = os.pread(fd, 1, at)
            for bit in range(8):
                os.pwrite(fd, bytes([byte ^ 1 << bit]), at)
                told += shift_of(one, other, before, after) is None
            os.pwrite(fd, bytes([byte]), at)
    os.close(fd)
    assert told == zmap.index_size * 8, "one number alone never moves all"


def test_damage_that_both_have_is_still_told(pair: Callable[..., tuple[Path, Path]]) -> None:
    """The same invalid index in both images, moved."""
    paths = pair(pcluster=65536)
    for path in paths:
        with Image(path) as image:
            zmap = image.zmap(image.lookup("d/text"))
        data = bytearray(path.read_bytes())
        data[zmap.position + 1] ^= 0x20
        path.write_bytes(data)
    with Image(paths[0], verify_checksum=False) as one, pytest.raises(ErofsFormatError):
        list(one.extents(one.lookup("d/text")))
    (change,) = [one for one in compare_paths(*paths).changes if one.layer == "damage"]
    assert "has a second head type" in change.why


def test_only_the_inline_tail_has_moved() -> None:
    """A tail is where its inode is, wherever the blocks are."""
    extents = [
        Extent(0, 9000, Kind.ENCODED, 4096, 4096, 0),
        Extent(9000, 4096, Kind.HOLE),
        Extent(13096, 5000, Kind.ENCODED, 8192, 8192, 0),
        Extent(18096, 50, Kind.ENCODED, 70, 30, 0, False, True),
    ]
    assert list(runs(extents, Shift(0, 7), 1 << 20)) == [(70, 30, 7), (4096, 12288, 0)]
    assert list(runs(extents, Shift(-4096, 7), 8192)) == [(4096, 4096, -4096), (70, 30, 7), (8192, 8192, -4096)]
    assert list(runs(extents[1:2], Shift(9, 9), 8192)) == []
