# SPDX-License-Identifier: Apache-2.0
"""Exact bytes: mkfs.erofs's own images and indexes, checksums, UUIDs, filters."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from writer_check import write, written
from writer_trees import file, mixed, noise, rich_tree, text

from erofs_edge.erofs import index
from erofs_edge.erofs.attributes import filter_bit, split_name, xxh32
from erofs_edge.erofs.index import Extent, Site, build_index
from erofs_edge.erofs.ondisk import SUPERBLOCK, Superblock, super_checksum
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileTree, Inode

UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def tiny_tree() -> FileTree:
    tree = FileTree()
    lines = b"".join(b"line %04d of the sample text\n" % i for i in range(400))[:10240]
    tree.add("d/f", file(lines, xattrs={b"user.k": b"v1"}))
    tree.add("l", Inode(stat.S_IFLNK | 0o777, target=b"d/f"))
    return tree


def test_tiny_image_is_the_one_of_mkfs(tmp_path: Path) -> None:
    """Made by mkfs.erofs 1.9.4 -zlz4 -C4096 -T1000000 -U 00112233-… --all-root from the same tree."""
    image = written(
        tiny_tree(), tmp_path, compression="lz4", epoch=1_000_000, times="fixed", uuid=UUID.bytes, all_root=True
    )
    assert len(image) == 8192
    assert image[0x400:0x410].hex() == "e2e1f5e01e0eaec5070000000c002400"
    assert image[0x580:0x5D0].hex() == (
        "06000300a4810100002800000000000001000000040000000000000000000000"
        "ffbfffff0000000000000000010102006b763100000000000000000001000000"
        "00100120000000000008000001000000"
    )
    assert hashlib.sha256(image).hexdigest() == "30e38fdeeac25294ec2e043523988c64581cc058cdd48170aa85f0997921e3ab"


def test_compact_index_of_many_big_pclusters() -> None:
    """The index that mkfs.erofs 1.9.4 -zlz4 -C16384 writes for a file of 491520 bytes at inode byte 0x500."""
    extents = _golden_extents()
    raw = build_index(extents, 491520, Site(12, first_block=1, position=0x520), big=True)
    assert raw[:8].hex() == "0000000007000000"
    assert [raw[at : at + size].hex() for at, size in GOLDEN_PACKS] == GOLDEN


GOLDEN = [
    "0010042801000000",
    "0220032005000000",
    "0420012005000000",
    "7d13012a000e80046001f8a611a002e000480016800620604480128005000000",
    "03200158005e6104a800380012800520ad47800a800320015800068011000000",
    "7115012a000e8004600128c311a002e0004800168006a0c94480128019000000",
    "0320015800fa6504a800380012800520f647800a800320015800068025000000",
    "271a012a000e8004a09c22a7c829721a012a000e80046001680006802d000000",
    "fc1b012a000e8004600168001e80086002a8002e804a1c012a00268038000000",
    "04600168001e80086002a8002e800e1c012a000e8004600168000e8040000000",
    "0820012044000000",
]
GOLDEN_PACKS = [(8, 8), (16, 8), (24, 8), *[(32 + 32 * i, 32) for i in range(7)], (256, 8)]


def _golden_extents() -> list[Extent]:
    """Decode the packs: (lcluster, offset, blocks) of each head; zero blocks for raw ones."""
    heads = [(0, 0, 4), (6, 893, 4), (12, 2671, 4), (19, 384, 4), (25, 2135, 4), (31, 3764, 4), (38, 1393, 4),
             (44, 3122, 4), (51, 806, 4), (57, 2430, 4), (63, 4056, 4), (70, 2599, 4), (75, 2674, 0), (76, 2674, 0),
             (77, 2674, 0), (78, 2674, 4), (86, 3068, 4), (98, 3146, 4), (110, 3086, 4)]  # fmt: skip
    starts = [lcluster * 4096 + offset for lcluster, offset, _ in heads] + [491520]
    return [
        Extent(end - start, blocks or 1, not blocks)
        for (_, _, blocks), start, end in zip(heads, starts[:-1], starts[1:], strict=True)
    ]


def test_one_pack_without_big_pclusters() -> None:
    raw = build_index([Extent(10240, 1, False)], 10240, Site(12, first_block=1, position=0x5B8), big=False)
    assert raw.hex() == "0000000001000000" + "0010012000000000" + "0008000001000000"


@given(
    bits=st.integers(9, 14),
    lclusters=st.integers(1, index.ALONE_MAX),
    rest=st.integers(0, (1 << 14) - 1),
    blocks=st.integers(0, 16),
    first_block=st.integers(0, (1 << 32) - 32),
    eighths=st.integers(0, 7),
)
def test_the_index_of_a_single_extent(
    bits: int, lclusters: int, rest: int, blocks: int, first_block: int, eighths: int
) -> None:
    """It is derived from a known one by changing numbers, and equals what is made for any extents."""
    size = (lclusters << bits) - rest % (1 << bits)
    extents = [Extent(size, blocks, False)]
    known = build_index(extents, size, Site(bits, first_block, 8 * eighths), big=True, inline=7)
    advise = int.from_bytes(known[4:6], "little")
    starts = index._starts(extents, size, bits, first_block)
    assert known[8:] == index._compact(starts, lclusters, max(bits, 12), advise, 8 * eighths + 8)


@pytest.mark.parametrize(("lclusters", "bits", "slots"), [(2, 16, 2), (16, 14, 16)])
def test_the_last_slot_of_a_full_last_pack_tells_the_distance_ahead(lclusters: int, bits: int, slots: int) -> None:
    size = lclusters * 4096
    raw = build_index([Extent(size, 1, False)], size, Site(12, first_block=1, position=24), big=False)
    pack = int.from_bytes(raw[8 : 8 + slots * bits // 8], "little")
    entries = [pack >> bits * slot & (1 << bits) - 1 for slot in range(slots)]
    assert entries == [0x1000, *(0x2000 + back for back in range(1, lclusters - 1)), 0x2001]


def test_checksum_covers_the_first_block(tmp_path: Path) -> None:
    image = written(rich_tree(), tmp_path, compression="lz4", pcluster=16384)
    superblock = Superblock(*SUPERBLOCK.unpack_from(image, 1024))
    assert superblock.checksum == super_checksum(image[:4096], 12) != 0
    assert superblock.blocks_lo * 4096 == len(image)
    without = written(rich_tree(), tmp_path, compression="lz4", pcluster=16384, checksum=False)
    assert Superblock(*SUPERBLOCK.unpack_from(without, 1024)).checksum == 0
    assert Superblock(*SUPERBLOCK.unpack_from(without, 1024)).feature_compat & 1 == 0


@pytest.mark.parametrize(
    ("options", "incompat", "algorithms"),
    [
        ({"compression": "none", "pcluster": 65536}, 0, 0),
        ({"compression": "lz4"}, 1, 65535),
        ({"compression": "lz4hc", "pcluster": 65536}, 3, 1),
    ],
)
def test_feature_bits(tmp_path: Path, options: dict[str, object], incompat: int, algorithms: int) -> None:
    image = written(tiny_tree(), tmp_path, volume_name=b"edge", **options)
    superblock = Superblock(*SUPERBLOCK.unpack_from(image, 1024))
    assert (superblock.feature_incompat, superblock.u1) == (incompat, algorithms)
    assert superblock.volume_name == b"edge" + bytes(12)
    if incompat == 3:
        assert image[1152:1168].hex() == "0e00ffff1000" + "00" * 10


def test_uuid_comes_from_the_content(tmp_path: Path) -> None:
    first, second, other = tiny_tree(), tiny_tree(), tiny_tree()
    other.get("d/f").mode ^= 1  # type: ignore[union-attr]
    ids = [write(tree, tmp_path / "i").uuid for tree in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert uuid.UUID(bytes=ids[0]).version == 8
    assert write(first, tmp_path / "i", uuid=UUID.bytes).uuid == UUID.bytes


def test_epoch_is_the_most_frequent_time(tmp_path: Path) -> None:
    tree = FileTree()
    for i, time in enumerate([5, 7_000_000_001, 7_000_000_001, -3, -3, -3]):
        tree.add(f"{i}", file(b"", mtime_ns=time))
    tree.root.mtime_ns = -9
    superblock = Superblock(*SUPERBLOCK.unpack_from(written(tree, tmp_path), 1024))
    assert (superblock.epoch, superblock.fixed_nsec) == (7, 1)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        (b"user.k", 14),
        (b"security.selinux", 11),
        (b"security.capability", 29),
        (b"system.posix_acl_access", 30),
        (b"system.posix_acl_default", 21),
    ],
)
def test_filter_bits(name: bytes, bit: int) -> None:
    assert filter_bit(*split_name(name)) == bit


def test_xxh32_known_answers() -> None:
    """From the algorithm's specification and reference implementation."""
    assert xxh32(b"", 0) == 0x02CC5D05
    assert xxh32(b"a", 0) == 0x550D7456
    assert xxh32(b"Nobody inspects the spammish repetition", 0) == 0xE2293B2F


def test_names_without_a_prefix_are_refused() -> None:
    for name in (b"system.ntfs", b"user.", b"btrfs.x", b"system.posix_acl_access2", b"user." + b"n" * 256):
        with pytest.raises(SourceError, match=r"cannot be stored|Linux cannot read"):
            split_name(name)


@pytest.mark.oracle
@pytest.mark.parametrize("arguments", ["-zlz4 -C4096", "-zlz4hc,9 -C65536", "-zlz4hc,12 -C16384", "-zlz4 -C65536"])
def test_cut_as_mkfs_cuts(oracle: Callable[[str], str], tmp_path: Path, arguments: str) -> None:
    """The same extents, stored alike, for every file except data that looks compressed, which we skip sooner."""
    source = tmp_path / "src"
    source.mkdir()
    tree = FileTree()
    for seed, size in enumerate([1, 4096, 4097, 5000, 8192, 66_000, 300_000, 1_000_001, 4_000_000]):
        for kind in (text, noise, mixed):
            name = f"{kind.__name__}-{size}"
            (source / name).write_bytes(kind(size, seed))
            tree.add(name, file(kind(size, seed)))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    subprocess.run(
        [oracle("mkfs.erofs-1.9"), *arguments.split(), "-T0", "--workers=2", str(theirs), str(source)],
        check=True,
        capture_output=True,
    )
    name, _, rest = arguments.removeprefix("-z").partition(" ")
    codec, _, level = name.partition(",")
    write(tree, ours, compression=codec, level=int(level) if level else None, pcluster=int(rest[2:]))
    with Image(ours) as a, Image(theirs) as b:
        for path, _ in list(tree.walk())[1:]:
            both = [
                [(e.start, e.length, e.kind, i.read(i.lookup(path), e.start, 64)) for e in i.extents(i.lookup(path))]
                for i in (a, b)
            ]
            assert both[0] == both[1], path


@given(st.lists(st.integers(1, 9), min_size=1, max_size=300), st.integers(0, 3), st.booleans())
def test_index_size_and_alignment(lengths: list[int], eighths: int, big: bool) -> None:
    """Packs never cross a block, whatever is indexed: sizes follow from the number of lclusters alone."""
    extents = [Extent(n * 4096 + 100, 1 if n < 2 or not big else 2, False) for n in lengths]
    size = sum(e.length for e in extents)
    raw = build_index(extents, size, Site(12, first_block=10, position=32 + 8 * eighths), big=big)
    count = -(-size // 4096)
    leading = min((32 - (40 + 8 * eighths) % 32) // 4 % 8, count)
    middle = (count - leading) // 16 * 16
    assert len(raw) == 8 + 4 * leading + 2 * middle + 8 * -(-(count - leading - middle) // 2) + 4 * (leading % 2)
