# SPDX-License-Identifier: Apache-2.0
"""48-bit addresses: the forms of Linux 6.15 if requested, and automatically if a block number needs them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import seal
from treediff import diff
from writer_check import fsck_differences, kernel_differences, write, written
from writer_trees import NS, file, mixed, noise, rich_tree, text

from erofs_edge.erofs import ondisk, output
from erofs_edge.erofs.check import check
from erofs_edge.erofs.chunks import DEVICE_SHIFT, HOLE, set_table
from erofs_edge.erofs.encode import encode_inode
from erofs_edge.erofs.extent_table import build_table
from erofs_edge.erofs.gate import parse_kernel
from erofs_edge.erofs.index import Extent, Site
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Sink
from erofs_edge.erofs.plan import Node, reach
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsFormatError, SourceError, UsageError
from erofs_edge.sources.directory import scan
from erofs_edge.tree import FileTree, Inode

BLOCK = 512  # small blocks: 2**32 of them are 2 TiB, which file systems can pretend to hold
FAR = 1 << 32
OPTIONS: list[dict[str, Any]] = [
    {},
    {"compression": "none"},
    {"compression": "lz4", "pcluster": 65536, "fragments": "tails"},
    {"compression": "zstd", "pcluster": 65536, "ztailpacking": True},
    {"compression": "lz4", "pcluster": 16384, "dedupe": True},
    {"compression": "lz4", "fragments": "all", "dedupe": True},
    {"compression": "none", "chunk_size": 4096},
    {"compression": "lz4", "block_size": 512, "pcluster": 4096},
    {"compression": "deflate", "inode_form": "extended", "full_index": True},
]


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_reader_sees_the_input(
    oracle: Callable[[str], str], needs_root: None, tmp_path: Path, options: dict[str, Any]
) -> None:
    image = tmp_path / "i"
    tree = rich_tree()
    tree.remove("large")
    info = write(tree, image, wide=True, **options)
    assert info.minimum_kernel == (6, 15)
    assert "48bit" in info.features
    with Image(image) as opened:
        assert diff(opened.tree(), tree) == []
    assert check(image).findings == []
    assert kernel_differences(image, tree) == []
    assert fsck_differences(oracle, image, tree) == []


def times_tree() -> FileTree:
    tree = FileTree(Inode(0o40755, mtime_ns=1_000 * NS + 7))
    for i, seconds in enumerate((1_000, 999, 1_000 + (1 << 32) - 2, 1_000 + (1 << 32), 5_000, 5_000, -3)):
        tree.add(f"{i}", file(b"x", mtime_ns=seconds * NS + 7))
    tree.add("fraction", file(b"x", mtime_ns=5_000 * NS + 8))
    return tree


@pytest.mark.root
def test_compact_inodes_keep_their_times(needs_root: None, tmp_path: Path) -> None:
    """Seconds from the earliest time on, within 32 bits, with the image's own fraction."""
    tree = times_tree()
    write(tree, image := tmp_path / "i", wide=True)
    with Image(image) as opened:
        assert diff(opened.tree(), tree) == []
        forms = {name: opened.lookup(b"/" + name).extended for name in tree.root.children}
        raw = opened.superblock.raw
    assert {name.decode() for name, extended in forms.items() if extended} == {"3", "6", "fraction"}
    assert (raw.epoch, raw.epoch + raw.build_time, raw.fixed_nsec) == (999, 1_000, 7)
    assert kernel_differences(image, tree) == []


def test_the_image_s_own_time_may_be_the_earliest(tmp_path: Path) -> None:
    write(times_tree(), image := tmp_path / "i", wide=True, epoch=10)
    with Image(image) as opened:
        assert (opened.superblock.raw.epoch, opened.superblock.raw.build_time) == (10, 0)
        assert diff(opened.tree(), times_tree()) == []


def test_it_is_smaller_where_times_differ_and_clusters_are_large(tmp_path: Path) -> None:
    """Compact inodes, and 16 bytes per extent instead of 2 per block."""
    tree = FileTree()
    for i in range(200):
        tree.add(f"{i}", file(text(400_000 if i < 5 else 10, i), mtime_ns=i * NS))
    sizes = [write(tree, tmp_path / "i", wide=wide, pcluster=65536, compression="lz4").size for wide in (False, True)]
    assert sizes[1] < sizes[0]


def test_golden_bytes(tmp_path: Path) -> None:
    """The table of a file with two pclusters and a raw tail, byte for byte as struct z_erofs_extent defines it."""
    extents = [Extent(70_000, 16, False), Extent(9_000, 1, False, place=77, partial=True), Extent(1_000, 1, True)]
    table = build_table(extents, 80_000, Site(12, FAR + 5, position=40, algorithm=ondisk.ALGORITHM_ZSTD))
    assert table.hex(" ", 4) == (
        "03000000 05000000 "  # three extents; EXTENTS, records of 16 bytes
        "00000140 00500000 00100000 00000000 "
        "00100048 00d00400 00000000 70110100 "
        "00100000 00500100 00100000 98340100"
    )
    tree = FileTree()
    tree.add("f", file(text(300_000, 1), mtime_ns=3 * NS))
    tree.add("g", file(text(100, 1), mtime_ns=9 * NS))
    image = written(tree, tmp_path, wide=True, compression="lz4", pcluster=65536, uuid=bytes(16))
    assert hashlib.sha256(image).hexdigest() == GOLDEN


GOLDEN = "8443ddb35ce0a596585abdbd159dfd33f4f198393449e64baaadeb981ee74431"


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    kinds = st.tuples(st.integers(1, 1 << 20), st.integers(1, 256), st.booleans(), st.integers(-1, 1 << 47))
    out = []
    for length, blocks, raw, place in draw(st.lists(kinds, min_size=1, max_size=20)):
        whole = -(-length // 4096)
        out.append(Extent(length, whole if raw else blocks, raw, place, not raw and length % 2 == 0))
    return out


@settings(deadline=None)
@given(extent_lists(), st.integers(1, 1 << 47), st.sampled_from([0, 8, 16, 24]), st.integers(0, 3), st.booleans())
def test_tables_say_what_they_were_made_of(
    extents: list[Extent], first: int, position: int, algorithm: int, fragment: bool
) -> None:
    """Read by hand: each record's bytes follow the previous one, and the extents are where it says."""
    offset = 1 << 40 | 12345 if fragment else -1
    size = sum(extent.length for extent in extents)
    table = build_table(extents, size, Site(12, first, position, fragment=offset, algorithm=algorithm))
    count, advise = int.from_bytes(table[:4], "little"), int.from_bytes(table[4:6], "little")
    assert advise == 0x05 | (ondisk.ADVISE_FRAGMENT_PCLUSTER if fragment else 0)
    at = -(-(position + 8) // 16) * 16 - position
    assert len(table) == at + 16 * count and not any(table[8:at])
    records = [
        [int.from_bytes(table[p + i : p + i + 4], "little") for i in (0, 4, 8, 12)] for p in range(at, len(table), 16)
    ]
    start, block = 0, first
    for number, extent in enumerate(extents):
        plen, low, high, lstart = records.pop(0)
        assert lstart == start
        if fragment and number == len(extents) - 1:
            assert (plen | low << 32) == offset
        else:
            assert low | high << 32 == (block if extent.place < 0 else extent.place) << 12
            assert plen & 0x1FFFFF == min(1 << 20, extent.blocks << 12)
            assert plen >> 28 == (0 if extent.raw else algorithm + 1) and bool(plen >> 27 & 1) == extent.partial
        block += extent.own
        start += extent.length
    assert records == []


class Gap(Sink):
    """Skips so many bytes after the first blocks that everything else is far away; they are a hole."""

    skipped = False

    def append(self, chunks: Any) -> None:
        super().append(chunks)
        if not self.skipped:
            self.skipped = True
            self.flush()
            self.position = (FAR - 40) * BLOCK


@contextmanager
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    @contextmanager
    def replacing(path: Path, **options: Any) -> Iterator[Sink]:
        with output.replacing(path, **options) as sink:
            sink.__class__ = Gap
            yield sink

    with monkeypatch.context() as patch:
        patch.setattr("erofs_edge.erofs.write.replacing", replacing)
        yield


def far_tree() -> FileTree:
    """Data before block 2**32, across it, and after it; directories and links after it."""
    tree = FileTree()
    tree.add("near", file(noise(9 * BLOCK, 1)))
    for i in range(6):
        tree.add(f"d{i}/mixed", file(mixed(11 * BLOCK + i, i) + b"end", mtime_ns=i * NS))
    for i in range(60):
        tree.add(f"d1/{i:0100}", file(noise(30, i)))
    linked = file(noise(5 * BLOCK + 3, 8))
    tree.add("d2/one", linked)
    tree.add("d2/two", linked)
    tree.add("d3/target", Inode(0o120777, target=b"t" * 700))
    tree.add("d3/same", file(noise(9 * BLOCK, 1)))
    tree.add("d3/words", file(text(60 * BLOCK, 3)))
    for i in range(4):
        tree.add(f"d4/words{i}", file(text(50 * BLOCK + 100 * i, i)))
    return tree


@pytest.mark.root
@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none"},
        {"compression": "none", "dedupe": True, "inline_tails": False},
        {"compression": "lz4", "pcluster": 4096},
        {"compression": "zstd", "dedupe": True, "pcluster": 1024},
        {"compression": "lz4", "fragments": "tails"},
        {"compression": "none", "chunk_size": 1024},
        {"compression": "none", "profile": (b"/d3/words", b"/d1", b"/d2/one")},
    ],
    ids=str,
)
def test_far_blocks_bring_their_forms_along(
    oracle: Callable[[str], str],
    needs_root: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    tree, image = far_tree(), tmp_path / "i"
    with far_away(monkeypatch):
        info = write(tree, image, block_size=BLOCK, uuid=bytes(16), **options)
    assert info.blocks > FAR
    assert info.minimum_kernel >= (6, 15)
    assert image.stat().st_size > 2 << 40
    assert image.stat().st_blocks * 512 < 2 << 20, "nearly all of it is a hole"
    with Image(image) as opened:
        assert opened.superblock.blocks == info.blocks
        assert diff(opened.tree(), tree) == []
        reached = [e.address + e.size for _, i in opened.walk() if i.size for e in opened.extents(i) if e.size]
        assert min(reached) < FAR * BLOCK < max(reached)
    assert kernel_differences(image, tree) == []
    assert fsck_differences(oracle, image, tree) == []


def test_an_older_kernel_is_refused_when_that_turns_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with far_away(monkeypatch), pytest.raises(UsageError, match=r"Linux 6.12 cannot.*-E 48bit needs 6.15"):
        write(far_tree(), tmp_path / "i", block_size=BLOCK, compression="none", kernel=parse_kernel("6.12"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_name_a_far_block_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with far_away(monkeypatch), pytest.raises(SourceError, match="cannot name block") as caught:
        write(
            far_tree(),
            tmp_path / "i",
            block_size=BLOCK,
            compression="none",
            inode_form="compact",
            epoch=0,
            times="fixed",
        )
    assert caught.value.where
    with far_away(monkeypatch), pytest.raises(CapacityError, match="inline tail cannot go"):
        write(far_tree(), tmp_path / "i", block_size=BLOCK, compression="lz4", ztailpacking=True)
    monkeypatch.setattr("erofs_edge.erofs.write.BLOCKS_MAX", FAR)
    with far_away(monkeypatch), pytest.raises(CapacityError, match="more than an EROFS image can have"):
        write(far_tree(), tmp_path / "i", block_size=BLOCK, compression="none")


def test_block_of_all_ones_is_no_hole() -> None:
    """Number 2**32 - 1 would be a hole in 32 bits: the upper bits, which are zero, tell the difference."""
    node = Node(file(bytes(4096)), b"/f", 2, None, size=4096)
    node.i_u = ondisk.NULL_ADDR
    form, _, _, high, *_ = ondisk.COMPACT_INODE.unpack(encode_inode(node))
    assert (form & ondisk.FORMAT_NLINK_1, high) == (ondisk.FORMAT_NLINK_1, 0)
    node.links = 2
    reach(node, ondisk.NULL_ADDR, WriteOptions())
    assert node.extended
    device = Node(Inode(0o20600, rdev=(0xFFF, 0xFFFFF)), b"/c", 3, None, i_u=0xFFFFFFFF)
    assert not ondisk.COMPACT_INODE.unpack(encode_inode(device))[0] & ondisk.FORMAT_NLINK_1


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.just(HOLE), st.integers(0, (1 << 48) - 1)), min_size=1, max_size=30), st.integers(0, 65535)
)
def test_chunk_tables_of_any_address(blocks: list[int], device: int) -> None:
    """The short form, indexes, or 48-bit indexes: all give the same result."""
    node = Node(file(bytes(len(blocks) * 4096)), b"/f", 2, None)
    features = set_table(node, [b if b == HOLE else device << DEVICE_SHIFT | b for b in blocks], 4096, 12)
    wide = bool(node.i_u & ondisk.CHUNK_48BIT)
    assert wide == bool(features & ondisk.INCOMPAT_48BIT) == any(b >= ondisk.NULL_ADDR for b in blocks)
    step = 1 << (node.i_u & ondisk.CHUNK_BITS_MASK)
    said: list[int] = []
    if node.i_u & ondisk.CHUNK_INDEXES:
        for high, number, low in ondisk.CHUNK_INDEX.iter_unpack(node.index):
            block = low | high << 32 if wide else low
            hole = block == ((1 << 48) - 1 if wide else ondisk.NULL_ADDR)
            assert hole or number == device
            said += [HOLE if hole else block + i for i in range(step)]
    else:
        assert not device or set(blocks) == {HOLE}
        for at in range(0, len(node.index), 4):
            block = int.from_bytes(node.index[at : at + 4], "little")
            said += [HOLE if block == ondisk.NULL_ADDR else block + i for i in range(step)]
    assert said[: len(blocks)] == [HOLE if b == (1 << 48) - 1 and wide else b for b in blocks]


def test_hostile_fields(tmp_path: Path) -> None:
    """Each upper half, set where it should not be or to something that does not exist."""
    tree = FileTree()
    tree.add("f", file(noise(9_000, 1)))
    write(tree, tmp_path / "i", wide=True, compression="none")
    good = (tmp_path / "i").read_bytes()
    with Image(tmp_path / "i") as opened:
        inode = opened.lookup("/f")

    def broken(offset: int, value: bytes, wide: bool = True) -> str:
        data = bytearray(good)
        data[offset : offset + len(value)] = value
        if not wide:
            data[1024 + 80] &= ~ondisk.INCOMPAT_48BIT
        (tmp_path / "b").write_bytes(seal(data))
        with pytest.raises(ErofsFormatError) as caught, Image(tmp_path / "b") as opened:
            opened.read(opened.lookup("/f"), 0, 9_000)
        assert caught.value.where
        return str(caught.value)

    assert "outside the image" in broken(inode.offset, bytes([good[inode.offset] | ondisk.FORMAT_NLINK_1]))
    assert "unknown bits in i_format" in broken(inode.offset, bytes([good[inode.offset] | 0x10]), wide=False)
    assert "truncated" in broken(
        1024 + 112, (36).to_bytes(8, "little")
    )  # the old number becomes upper bits of the size


def test_it_excludes_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot keep their places"):
        WriteOptions(wide=True).replaced(baseline=tmp_path / "old")
    write(far_tree(), tmp_path / "old", wide=True)
    with pytest.raises(UsageError, match="48-bit addresses"):
        write(far_tree(), tmp_path / "i", baseline=tmp_path / "old")


@pytest.mark.oracle
def test_no_larger_than_mkfs(oracle: Callable[[str], str], tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for i in range(40):
        (source / f"{i}").write_bytes(mixed(3_000 * i, i))
        os.utime(source / f"{i}", (i, i))
    ways: list[tuple[dict[str, Any], list[str]]] = [
        ({"compression": "lz4", "pcluster": 65536}, ["-zlz4", "-C65536"]),
        ({"compression": "none"}, []),
    ]
    for options, words in ways:
        ours = write(scan(source), tmp_path / "i", wide=True, **options)
        argv = [oracle("mkfs.erofs-1.9"), *words, "-E48bit", "--quiet", str(tmp_path / "theirs"), str(source)]
        subprocess.run(argv, check=True)
        assert ours.size <= (tmp_path / "theirs").stat().st_size
