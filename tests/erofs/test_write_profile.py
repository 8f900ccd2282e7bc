# SPDX-License-Identifier: Apache-2.0
"""Profiles: what is used first is at the front, with its metadata."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from treediff import diff
from updates import first_files, tree_of, update
from writer_check import Oracle, fsck_differences, kernel_differences, write
from writer_trees import Repeated, file, mixed, noise, rich_tree, text

from erofs_edge.erofs.check import check
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.ondisk import INCOMPAT_DEDUPE
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.profile import Use, read_profile
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError, UsageError
from erofs_edge.tree import FileTree, Inode

LZ4: dict[str, Any] = {"compression": "lz4", "pcluster": 16384, "epoch": 0, "times": "fixed"}


def spans(path: Path, names: list[str]) -> tuple[list[int], list[int]]:
    """Return the blocks of inodes and entries that a lookup of each name reads, and of the data, in order."""
    metadata, data = [], []
    with Image(path) as image:
        for name in names:
            way = name.split("/")
            for depth in range(len(way) + 1):
                inode = image.lookup("/".join(way[:depth]))
                metadata.append(inode.offset // 4096)
                extents = [e for e in image.extents(inode) if inode.is_dir or not e.inline]
                blocks = [e.address // 4096 + n for e in extents for n in range(-(-e.size // 4096))]
                (metadata if inode.is_dir else data).extend(blocks)
    return metadata, data


@pytest.mark.parametrize(
    "way", [LZ4, LZ4 | {"ztailpacking": True, "dedupe": True}, {"compression": "none", "chunk_size": 4096}], ids=str
)
def test_hot_files_and_their_metadata_come_first(way: dict[str, Any], tmp_path: Path) -> None:
    files = first_files(21, 300)
    tree = tree_of(files)
    hot = sorted(name for name, one in files.items() if one.size > 5000)[::-9]
    plain = write(tree, tmp_path / "plain", **way)
    info = write(tree, tmp_path / "hot", profile=tuple(name.encode() for name in hot), **way)
    with Image(tmp_path / "hot") as image:
        assert not check(tmp_path / "hot").findings
        assert image.superblock.blocks == info.blocks
    assert info.blocks <= plain.blocks + 2
    metadata, data = spans(tmp_path / "hot", hot)
    assert max(metadata + data) <= info.hot_blocks + max(1, min(metadata))
    assert len(set(metadata + data)) >= info.hot_blocks - 2  # nothing else is there
    if "ztailpacking" not in way:
        assert data == sorted(data)
    assert max(spans(tmp_path / "plain", hot)[1]) > 2 * info.hot_blocks


def test_everything_else_is_as_it_was(oracle: Oracle, tmp_path: Path) -> None:
    tree = rich_tree()
    tree.add("way/loop", Inode(stat.S_IFLNK | 0o777, target=b"loop"))
    tree.add("way/there", Inode(stat.S_IFLNK | 0o777, target=b"../large/words"))
    profile = (b"/way/there", b"/kinds/long", b"/way/loop", b"/links/3/name", b"/empty", b"/kinds/fifo", b"/", b"/gone")
    info = write(tree, tmp_path / "hot", compression="lz4", pcluster=16384, profile=profile)
    assert info.unmatched == 1
    assert not fsck_differences(oracle, tmp_path / "hot", tree)
    assert not check(tmp_path / "hot").findings
    with Image(tmp_path / "hot") as image:
        words = image.lookup("large/words")
        assert next(image.extents(words)).address // 4096 <= 2


@pytest.mark.root
def test_the_kernel_reads_it(needs_root: None, tmp_path: Path) -> None:
    files = first_files(22, 200)
    tree = tree_of(files)
    profile = tuple(name.encode() for name in sorted(files)[::7])
    write(tree, tmp_path / "hot", profile=profile, **LZ4)
    assert not kernel_differences(tmp_path / "hot", tree, mtime_ns=0)


def test_no_profile_and_an_empty_one_give_the_same_bytes(tmp_path: Path) -> None:
    tree = tree_of(first_files(23, 60))
    images = [tmp_path / name for name in ("without", "empty", "unknown")]
    for image, profile in zip(images, ((), (), (b"/not/here",)), strict=True):
        info = write(tree, image, profile=profile, **LZ4)
        assert info.hot_blocks == 0
    assert len({image.read_bytes() for image in images}) == 1


def test_with_a_baseline(tmp_path: Path) -> None:
    files = first_files(24, 150)
    profile = tuple(name.encode() for name in sorted(files)[::5])
    write(tree_of(files), tmp_path / "old", profile=profile, **LZ4)
    write(tree_of(files), tmp_path / "same", profile=profile, baseline=tmp_path / "old", jobs=1, **LZ4)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "old").read_bytes()
    tree = tree_of(update(files, 1))
    write(tree, tmp_path / "new", profile=profile, baseline=tmp_path / "old", **LZ4)
    assert not check(tmp_path / "new").findings


def test_the_format(tmp_path: Path) -> None:
    profile = tmp_path / "boot.profile"
    profile.write_bytes(
        b"# first use at boot\r\n\n/sbin/init\n/usr/lib/a b 0 65536\n/usr/lib/a b\t70000 10000\n/x\\012y\\\\\n"
        b"/sbin/init\n/version\\0401 2\n"
    )
    assert read_profile(profile) == (
        Use(b"/sbin/init"), Use(b"/usr/lib/a b", 0, 65536), Use(b"/usr/lib/a b", 70000, 80000), Use(b"/x\ny\\"),
        Use(b"/version 1 2"),
    )  # fmt: skip
    for line in (b"relative", b"relative 0 5", b"/x 5 0", b" /x", b"5-6 /x", b"/x 1 " + b"9" * 40):
        profile.write_bytes(b"/fine\n" + line + b"\n")
        with pytest.raises(SourceError) as caught:
            read_profile(profile)
        assert caught.value.where == f"{profile}:2"
        assert caught.value.hint
    with pytest.raises(SourceError, match="cannot read the profile"):
        read_profile(tmp_path / "none")


RANGED: list[dict[str, Any]] = [
    LZ4,
    LZ4 | {"dedupe": True, "ztailpacking": True},
    {"compression": "none", "chunk_size": 4096},
    {"compression": "none"},
    {"compression": "zstd", "pcluster": 65536, "full_index": True},
    LZ4 | {"block_size": 1024, "inline_tails": False},
]


def ranged_tree() -> tuple[FileTree, tuple[Use, ...]]:
    tree = FileTree()
    for number in range(6):
        tree.add(f"lib/{number}", file(mixed(400_000 + number, number)))
        tree.add(f"lib/again-{number}", file(mixed(400_000 + number, number)))
        tree.add(f"raw/{number}", file(noise(150_000, number)))
        tree.add(f"text/{number}", file(text(20_000, number)))
    tree.add("huge", file(Repeated((17 << 20) + 5, b"z" * 4095 + b"y", noise=1_000_003)))
    tree.add("link", Inode(stat.S_IFLNK | 0o777, target=b"lib/2"))
    uses = [
        Use(b"/lib/3", 200_000, 260_000),
        Use(b"/text/4"),
        Use(b"/lib/1", 0, 10_000),
        Use(b"/raw/2", 50_000, 60_000),
    ]
    uses += [Use(b"/link", 399_000, 500_000), Use(b"/lib/3", 0, 4096), Use(b"/huge", 16 << 20, (16 << 20) + 9)]
    return tree, (*uses, Use(b"/gone", 0, 5), Use(b"/lib/5", 900_000, 900_001))


def hot_span(path: Path, uses: tuple[Use, ...], block_size: int) -> list[int]:
    """Return the first block that each use reads, in order, without inline data."""
    found = []
    with Image(path) as image:
        for use in uses:
            inode = image.lookup(use.path)
            end = inode.size if use.end is None else min(use.end, inode.size)
            for extent in image.extents(inode, use.start):
                if extent.start >= end:
                    break
                if not extent.inline and extent.kind is not Kind.HOLE:
                    skipped = max(0, use.start - extent.start) if extent.kind is Kind.RAW else 0
                    found.append((extent.address + skipped) // block_size)
    return found


@pytest.mark.parametrize("way", RANGED, ids=str)
def test_parts_of_files_come_first(way: dict[str, Any], oracle: Oracle, tmp_path: Path) -> None:
    tree, uses = ranged_tree()
    info = write(tree, tmp_path / "hot", profile=uses, **way)
    with Image(tmp_path / "hot") as image:
        assert not diff(image.tree(), tree, times="epoch" not in way)
    assert not check(tmp_path / "hot").findings
    assert not fsck_differences(oracle, tmp_path / "hot", tree) or way.get("block_size")
    blocks = hot_span(tmp_path / "hot", uses[:-2], way.get("block_size", 4096))
    assert max(blocks) <= info.hot_blocks
    assert info.unmatched == 1
    if "ztailpacking" not in way and way != {"compression": "none"}:
        # later parts in the order may be in an extent that is already placed
        first = hot_span(tmp_path / "hot", uses[:4], way.get("block_size", 4096))
        assert first == sorted(first)
    if way != {"compression": "none"}:  # flat files stay in one piece
        whole = write(tree, tmp_path / "whole", profile=tuple(use.path for use in uses), **way)
        assert info.hot_blocks < whole.hot_blocks // 2
    again = write(tree, tmp_path / "again", profile=uses, jobs=1, **way)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "hot").read_bytes()
    assert again.uuid == info.uuid


@pytest.mark.root
@pytest.mark.parametrize("way", RANGED[:5], ids=str)
def test_the_kernel_reads_parts_that_come_first(way: dict[str, Any], needs_root: None, tmp_path: Path) -> None:
    tree, uses = ranged_tree()
    write(tree, tmp_path / "hot", profile=uses, **way)
    assert not kernel_differences(tmp_path / "hot", tree, **({"mtime_ns": 0} if "epoch" in way else {}))


@pytest.mark.parametrize("way", RANGED, ids=str)
def test_parts_of_files_with_a_baseline(way: dict[str, Any], tmp_path: Path) -> None:
    tree, uses = ranged_tree()
    write(tree, tmp_path / "old", profile=uses, **way)
    info = write(tree, tmp_path / "same", profile=uses, baseline=tmp_path / "old", **way)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "old").read_bytes()
    assert info.changed_blocks == 0
    tree.add("lib/3", file(mixed(500_000, 33)))
    tree.remove("text/4")
    write(tree, tmp_path / "new", profile=uses, baseline=tmp_path / "old", **way)
    with Image(tmp_path / "new") as image:
        assert not diff(image.tree(), tree, times="epoch" not in way)
    assert not check(tmp_path / "new").findings


def test_ranges_of_whole_files_are_whole_files(tmp_path: Path) -> None:
    tree, _ = ranged_tree()
    write(tree, tmp_path / "a", profile=(b"/lib/1", b"/text/2"), **LZ4)
    write(tree, tmp_path / "b", profile=(Use(b"/lib/1", 0, 1 << 40), Use(b"/text/2")), **LZ4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_fragments_have_no_order() -> None:
    with pytest.raises(UsageError, match="a profile orders files"):
        WriteOptions(compression="lz4", fragments="tails", profile=(b"/x",))


def test_hot_directories_have_their_blocks_there(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("a", file(text(300_000)))
    for number in range(300):
        tree.add(f"many/{number}-{'n' * 60}", file(b"%d" % number))
    info = write(tree, tmp_path / "hot", profile=(b"/many",), **LZ4)
    metadata, _ = spans(tmp_path / "hot", ["many"])
    assert max(metadata) <= info.hot_blocks
    assert not check(tmp_path / "hot").findings


def test_what_shares_pclusters_with_a_file_of_parts_says_so(tmp_path: Path) -> None:
    """Older kernels do not expect that: the superblock must stop them."""
    tree = FileTree()
    data = mixed(300_000, 3)
    tree.add("a", file(data))
    tree.add("b", file(data[:200_000] + mixed(90_000, 4)))
    info = write(tree, tmp_path / "i", dedupe=True, profile=(Use(b"/a", 4096, 65536),), **LZ4)
    assert info.repeats
    with Image(tmp_path / "i") as image:
        assert image.superblock.incompat(INCOMPAT_DEDUPE)
        assert diff(image.tree(), tree, times=False) == []
    assert check(tmp_path / "i").findings == []
