# SPDX-License-Identifier: Apache-2.0
"""Verification names exactly what is wrong, and believes no superblock."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.errors import FormatError, UsageError
from erofs_edge.verity import check
from erofs_edge.verity.check import Ranges, find_superblock, read_superblock, verify
from erofs_edge.verity.superblock import SIZE, Superblock, VerityInfo, parse
from erofs_edge.verity.tree import append, format_tree

BLOCK = 512
COUNT = 40  # three levels: 16 digests in a block of 512


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, VerityInfo]:
    path = tmp_path / "image"
    path.write_bytes(bytes(i * 31 & 0xFF for i in range(COUNT * BLOCK)))
    return path, append(path, block_size=BLOCK, salt=b"salt")


def test_every_byte_is_guarded(image: tuple[Path, VerityInfo]) -> None:
    """A flip anywhere in data, superblock, tree or padding is found, at its own block."""
    path, info = image
    good = path.read_bytes()
    [low, high] = info.superblock.levels(info.hash_offset)
    for position in range(len(good)):
        if position % 29 and position % BLOCK not in (0, BLOCK - 1):
            continue
        raw = bytearray(good)
        raw[position] ^= 0x40
        path.write_bytes(raw)
        found = verify(path, info)
        block = position // BLOCK
        if block < COUNT:
            assert (found.bad_data.ranges, found.bad_hash.total, found.unproven.total) == ([(block, 1)], 0, 0)
        elif block == COUNT:
            assert found.bad_superblock
            assert not (found.bad_data or found.bad_hash or found.unproven)
        elif block == high.start:
            assert (found.bad_hash.ranges, found.unproven.ranges) == ([(block, 1)], [(0, COUNT)])
        else:
            first = (block - low.start) * 16
            assert found.bad_hash.ranges == [(block, 1)]
            assert found.unproven.ranges == [(first, min(16, COUNT - first))]
            assert not found.bad_data
        assert not found.ok


def test_with_a_root_hash_alone(image: tuple[Path, VerityInfo]) -> None:
    """Only the superblock's UUID stays outside; every other byte is found or refused."""
    path, info = image
    good = path.read_bytes()
    for position in range(0, len(good), 13):
        in_superblock = position - info.hash_offset
        if 16 <= in_superblock < 32:
            continue
        raw = bytearray(good)
        raw[position] ^= 0x01
        path.write_bytes(raw)
        try:
            assert not verify(path, info.root_hash, hash_offset=info.hash_offset).ok
        except FormatError:
            assert 0 <= in_superblock < SIZE


@settings(max_examples=30, deadline=None)
@given(bad=st.sets(st.integers(0, 299), max_size=40), jobs=st.integers(1, 4))
def test_many_bad_blocks(bad: set[int], jobs: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("verity") / "image"
    data = bytearray(300 * 4096)
    path.write_bytes(data)
    info = format_tree(path, path.with_name("tree"), salt=b"")
    for block in bad:
        data[block * 4096 + block] = 1
    path.write_bytes(data)
    found = verify(path, info, hash_device=path.with_name("tree"), jobs=jobs)
    listed = {block for first, count in found.bad_data.ranges for block in range(first, first + count)}
    assert listed == bad
    assert found.bad_data.total == len(bad)


def test_wrong_root_hash_proves_nothing(image: tuple[Path, VerityInfo]) -> None:
    path, info = image
    found = verify(path, bytes(32))
    assert (found.bad_hash.total, found.bad_data.total, found.unproven.ranges) == (1, 0, [(0, COUNT)])
    with pytest.raises(UsageError, match="has 32"):
        verify(path, info.root_hash[:31])


def test_single_block(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    info = append(path)
    assert verify(path, info).ok
    path.write_bytes(b"y" + path.read_bytes()[1:])
    assert verify(path, info).bad_data.ranges == [(0, 1)]


def test_believes_the_info_and_not_the_disk(image: tuple[Path, VerityInfo]) -> None:
    path, info = image
    raw = bytearray(path.read_bytes())
    raw[info.hash_offset : info.hash_offset + SIZE] = replace(info.superblock, data_blocks=1).pack()
    path.write_bytes(raw)
    found = verify(path, info)
    assert found.bad_superblock
    assert found.superblock.data_blocks == COUNT


def test_ranges_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "RANGES_MAX", 3)
    ranges = Ranges()
    for block in (1, 2, 5, 7, 9, 10):
        ranges.add(block)
    assert ranges.ranges == [(1, 2), (5, 1), (7, 1)]
    assert ranges.total == 6
    assert str(ranges) == "1-2, 5, 7"


GOOD = Superblock(bytes(range(16)), b"abc", 100)


def test_superblock_round_trip() -> None:
    assert parse(GOOD.pack(), 0) == GOOD


@pytest.mark.parametrize(
    ("at", "raw", "message"),
    [
        (0, b"VERITY", "no verity superblock"),
        (8, b"\x02", "version 2"),
        (12, b"\x00", "hash type 0"),
        (32, b"md5\0\0\0", "unknown hash algorithm"),
        (32, b"sha256\0x", "garbage"),
        (32, b"\xff\xff", "unknown hash algorithm"),
        (64, (1000).to_bytes(4, "little"), "block size 1000"),
        (64, (1 << 20).to_bytes(4, "little"), "block size 1048576"),
        (68, bytes(4), "block size 0"),
        (72, bytes(8), "0 data blocks"),
        (72, b"\xff" * 8, "data blocks"),
        (80, (257).to_bytes(2, "little"), "salt of 257"),
        (80, b"\x02", "padding"),
        (83, b"x", "padding"),
        (500, b"x", "padding"),
    ],
)
def test_hostile_superblocks(at: int, raw: bytes, message: str) -> None:
    hostile = bytearray(GOOD.pack())
    hostile[at : at + len(raw)] = raw
    with pytest.raises(FormatError, match=message) as caught:
        parse(bytes(hostile), 0x1000)
    assert caught.value.where is not None
    assert caught.value.where.startswith("offset 0x1")


def test_superblocks_that_promise_too_much(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192) + replace(GOOD, data_blocks=1 << 50).pack())
    with pytest.raises(FormatError, match="bytes of data"):
        verify(path, bytes(32), hash_offset=8192)
    path.write_bytes(bytes(8192) + replace(GOOD, data_blocks=2).pack())
    with pytest.raises(FormatError, match="hash tree ends"):
        verify(path, bytes(32), hash_offset=8192)
    path.write_bytes(replace(GOOD, data_blocks=2).pack() + bytes(20000))
    with pytest.raises(FormatError, match="inside the data"):
        verify(path, bytes(32), hash_offset=0)
    path.write_bytes(bytes(100))
    with pytest.raises(FormatError, match="cut off"):
        read_superblock(path, 0)
    assert find_superblock(path) is None


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(min_size=SIZE, max_size=SIZE), keep=st.integers(0, 104))
def test_fuzzed_superblocks(raw: bytes, keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "image"
    path.write_bytes(bytes(4096) + GOOD.pack()[:keep] + raw[keep:] + bytes(4096))
    with suppress(FormatError, UsageError):
        verify(path, bytes(32), hash_offset=4096)
