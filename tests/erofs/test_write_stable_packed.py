# SPDX-License-Identifier: Apache-2.0
"""Images with fragments that replace older ones: the packed inode is cut as before."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treediff import diff, scan
from updates import first_files, tree_of, update
from writer_check import Oracle, write
from writer_trees import file, mixed, noise, text

from erofs_edge.erofs.anchors import Anchors
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.check import check
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.places import OldPacked, Ranges, Wanted, place_as_before, place_in_order, regions
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.tree import FileTree

ALL: dict[str, Any] = {"compression": "lz4", "pcluster": 16384, "fragments": "all", "packed_pcluster": 16384}
HARD = b"\xfd7zXZ\0"


def packed_of(path: Path) -> tuple[bytes, list[Extent], dict[bytes, tuple[int, int]]]:
    """Return content and extents of the packed inode; path → (offset, length) of the files' parts in it."""
    with Image(path) as image:
        places = {}
        for name, inode in image.walk():
            if inode.size and not inode.is_dir:
                *_, last = image.extents(inode)
                if last.kind is Kind.FRAGMENT:
                    places[name] = last.address, last.length
        packed = image.packed
        return image.read(packed, 0, packed.size), list(image.extents(packed)), places


def agrees(path: Path, tree: FileTree) -> bool:
    with Image(path) as image:
        return not diff(image.tree(), tree, owners=False, times=False) and not check(path).findings


def many(count: int = 60, size: int = 5000) -> FileTree:
    tree = FileTree()
    for number in range(count):
        kind = (text, mixed)[number % 2]
        tree.add(f"f{number:03}", file(kind(size + 37 * number, number)))
    return tree


def test_one_changed_file_changes_one_pcluster(tmp_path: Path) -> None:
    tree = many()
    write(tree, tmp_path / "old", **ALL)
    tree.add("f030", file(text(5000 + 37 * 30, 1000)))
    info = write(tree, tmp_path / "new", baseline=tmp_path / "old", **ALL)
    assert agrees(tmp_path / "new", tree)
    (_, before, old), (_, after, new) = packed_of(tmp_path / "old"), packed_of(tmp_path / "new")
    assert new == old
    same = {(e.start, e.length, e.address) for e in before} & {(e.start, e.length, e.address) for e in after}
    assert len(same) >= len(before) - 2
    assert info.changed_blocks is not None and info.changed_blocks <= 12


def test_what_goes_leaves_zeros_and_what_comes_fills_them(tmp_path: Path) -> None:
    tree = many()
    for number in range(10):
        tree.add(f"f0{number}5-secret", file(b"secret %d " % number * 400))
        tree.add(f"f0{number}6-hard", file(HARD + b"%d secret" % number + noise(9000, number)))
    tree.add("z-hard", file(HARD + noise(5000, 99)))
    write(tree, tmp_path / "old", **ALL)
    for number in range(10):
        tree.remove(f"f0{number}5-secret")
        tree.remove(f"f0{number}6-hard")
    write(tree, tmp_path / "new", baseline=tmp_path / "old", **ALL)
    content, _, places = packed_of(tmp_path / "new")
    assert b"secret" not in content
    assert agrees(tmp_path / "new", tree)
    (_, _, before) = packed_of(tmp_path / "old")
    assert all(before[name] == place for name, place in places.items())
    tree.add("small", file(text(2000, 5)))
    write(tree, tmp_path / "more", baseline=tmp_path / "new", **ALL)
    again, _, filled = packed_of(tmp_path / "more")
    at, length = filled[b"small"]
    assert content[at : at + length] == bytes(length)
    assert len(again) == len(content)
    assert agrees(tmp_path / "more", tree)


def test_a_changed_part_of_a_large_file_stays_where_it_was(tmp_path: Path) -> None:
    data = bytearray(mixed(2_000_000, 3))
    tree = many(10)
    tree.add("large", file(bytes(data)))
    write(tree, tmp_path / "old", **ALL)
    data[1_000_000:1_000_100] = noise(100, 9)
    tree.add("large", file(bytes(data)))
    info = write(tree, tmp_path / "new", baseline=tmp_path / "old", **ALL)
    assert agrees(tmp_path / "new", tree)
    assert packed_of(tmp_path / "new")[2] == packed_of(tmp_path / "old")[2]
    assert info.changed_blocks is not None and info.changed_blocks <= 16


def test_a_moved_file_keeps_its_bytes(tmp_path: Path) -> None:
    tree = many()
    write(tree, tmp_path / "old", **ALL)
    moved = FileTree()
    for name, inode in tree.root.children.items():
        moved.add(b"elsewhere/" + name[::-1], inode)
    write(moved, tmp_path / "new", baseline=tmp_path / "old", **ALL)
    (content, before, _), (again, after, _) = packed_of(tmp_path / "old"), packed_of(tmp_path / "new")
    assert (again, after) == (content, before)
    assert agrees(tmp_path / "new", moved)


def test_equal_files_under_other_rules_stay_apart(tmp_path: Path) -> None:
    """Data compressed in two ways is not shared, and is then in the packed inode twice."""
    tree = many(20)
    for name in ("b.ko", "a", "z.ko"):
        tree.add(name, file(mixed(50_000, 5)))
    options = ALL | {"rules": (CompressionRule(match="*.ko", compression="deflate", level=1),)}
    write(tree, tmp_path / "old", **options)
    write(tree, tmp_path / "same", baseline=tmp_path / "old", **options)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "old").read_bytes()
    places = packed_of(tmp_path / "old")[2]
    assert places[b"a"] != places[b"b.ko"] == places[b"z.ko"]
    tree.add("new", tree.root.children.pop(b"a"))
    write(tree, tmp_path / "new", baseline=tmp_path / "old", **options)
    assert packed_of(tmp_path / "new")[2][b"new"] == min(places[b"a"], places[b"b.ko"])
    assert agrees(tmp_path / "new", tree)


def test_growth_ends_in_a_packed_inode_made_anew(tmp_path: Path) -> None:
    tree = many(200)
    write(tree, tmp_path / "old", **ALL)
    for number in range(200):
        if number % 4:
            tree.remove(f"f{number:03}")
    info = write(tree, tmp_path / "new", baseline=tmp_path / "old", **ALL)
    fresh = write(tree, tmp_path / "fresh", **ALL)
    assert info.packed == fresh.packed
    assert info.blocks <= 1.03 * fresh.blocks + 4
    assert packed_of(tmp_path / "new")[0] == packed_of(tmp_path / "fresh")[0]
    assert agrees(tmp_path / "new", tree)


def test_compact_leaves_no_gap_in_it(tmp_path: Path) -> None:
    tree = many(200)
    write(tree, tmp_path / "old", **ALL)
    tree.remove("f100")
    loose = write(tree, tmp_path / "loose", baseline=tmp_path / "old", **ALL)
    tight = write(tree, tmp_path / "tight", baseline=tmp_path / "old", compact=True, **ALL)
    fresh = write(tree, tmp_path / "fresh", **ALL)
    assert loose.packed == fresh.packed + 5000 + 37 * 100
    assert (tight.packed, tight.free_blocks) == (fresh.packed, 0)
    assert agrees(tmp_path / "loose", tree) and agrees(tmp_path / "tight", tree)


@pytest.mark.parametrize("more", [{}, {"fragments": "tails", "dedupe": True}, {"compression": "zstd"}], ids=str)
def test_threads_and_cache_change_nothing(more: dict[str, Any], tmp_path: Path) -> None:
    files = first_files(31, 150)
    way = ALL | {"epoch": 0, "times": "fixed"} | more
    write(tree_of(files), tmp_path / "old", **way)
    tree = tree_of(update(files, 1))
    made = set()
    with CompressionCache(tmp_path / "cache") as cache:
        for jobs, with_cache in ((1, None), (8, None), (2, cache), (3, cache)):
            write(tree, tmp_path / "new", baseline=tmp_path / "old", jobs=jobs, cache=with_cache, **way)
            made.add((tmp_path / "new").read_bytes())
    assert len(made) == 1


@pytest.mark.oracle
@pytest.mark.parametrize("extended", ["fragments=16384", "all-fragments=16384", "all-fragments=16384,dedupe"])
def test_an_image_by_mkfs_as_baseline(extended: str, oracle: Oracle, tmp_path: Path) -> None:
    """Its packed inode has another order, overlapping parts, and extents across our boundaries."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(150):
        (source / f"f{number}").write_bytes((text, mixed)[number % 2](100 + 400 * number, number // 2))
    argv = [oracle("mkfs.erofs-1.9"), "--quiet", "-zlz4", "-C16384", f"-E{extended}", "-T0", "--all-root", "-x-1"]
    subprocess.run([*argv, str(tmp_path / "old"), str(source)], check=True)
    way = ALL | {"fragments": "tails" if extended.startswith("fragments") else "all", "epoch": 0, "times": "fixed"}
    way |= {"all_root": True, "xattr_tolerance": -1, "dedupe": "dedupe" in extended}
    tree = scan(source)
    info = write(tree, tmp_path / "new", baseline=tmp_path / "old", **way)
    fresh = write(tree, tmp_path / "fresh", **way)
    assert agrees(tmp_path / "new", tree)
    assert info.blocks <= 1.03 * fresh.blocks + 4
    assert info.kept_blocks is not None and info.kept_blocks > info.data_blocks // 2
    write(tree, tmp_path / "again", baseline=tmp_path / "new", **way)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()


def test_an_image_without_fragments_as_baseline(tmp_path: Path) -> None:
    tree = many()
    zstd: dict[str, Any] = {"compression": "zstd", "pcluster": 16384, "dictionary": 65536}
    write(tree, tmp_path / "old", **zstd)
    packed = zstd | {"fragments": "all", "packed_pcluster": 16384}
    write(tree, tmp_path / "new", baseline=tmp_path / "old", **packed)
    assert agrees(tmp_path / "new", tree)
    write(tree, tmp_path / "back", baseline=tmp_path / "new", **zstd)
    assert agrees(tmp_path / "back", tree)


wanted = st.builds(
    Wanted, st.integers(1, 3000), st.booleans(), st.integers(0, 30).map(lambda n: b"%d" % n), st.just(b"")
)


@given(st.lists(wanted, max_size=25), st.lists(wanted, max_size=25), st.sampled_from([512, 1024]))
def test_places(first: list[Wanted], second: list[Wanted], block_size: int) -> None:
    """Equal parts stay, none overlap, and compressible data shares no block with incompressible data."""
    named = {(part.digest, part.length): part for part in first}
    offsets, size = place_in_order(list(named.values()), block_size)
    old = OldPacked(size, (), {part: [at] for part, at in zip(named, offsets, strict=True)}, {})
    new = list({(part.digest, part.length): part for part in second}.values())
    places, end = place_as_before(new, old, block_size)
    spans = sorted((at, at + part.length) for at, part in zip(places, new, strict=True))
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert end == max((stop for _, stop in spans), default=0)
    for at, part in zip(places, new, strict=True):
        kept = named.get((part.digest, part.length))
        assert kept is None or [at] == old.parts[part.digest, part.length]
    found = regions(new, places, end, block_size)
    assert [region.start for region in found] == [0, *(region.end for region in found[:-1])][: len(found)]
    assert not found or found[-1].end == end
    assert all(region.start % block_size == 0 for region in found)
    assert all(a.dense != b.dense for a, b in pairwise(found))
    soft = Ranges([(region.start, region.end) for region in found if not region.dense])
    for at, part in zip(places, new, strict=True):
        assert part.dense or soft.within(at, at + part.length) == part.length


def test_ranges() -> None:
    used = Ranges([(10, 20), (15, 30), (40, 50)])
    assert list(used.gaps()) == [(0, 10), (30, 40)]
    assert not used.take(5, 11) and not used.take(29, 35) and not used.take(12, 13) and not used.take(35, 45)
    assert used.take(30, 40) and used.take(50, 60) and used.take(0, 10)
    assert (list(used.gaps()), used.end) == ([], 60)
    assert [used.within(5, 15), used.within(55, 100), used.within(60, 70)] == [10, 5, 0]


def test_anchors() -> None:
    old = Anchors([(0, 100, False), (100, 164, True), (500, None, False)], 900)
    assert [old.target(at, 128) for at in (0, 100, 10, 400, 500, 600)] == [100, 164, 164, 900, 900, 900]
    assert (old.known_end(0), old.known_end(500), old.known_end(7)) == (100, None, None)
    assert old.is_raw(100) and not old.is_raw(0)
    assert Anchors([], 5).identity == "" and not Anchors([], 5)
    assert old.identity != Anchors([(0, 100, True)], 900).identity
