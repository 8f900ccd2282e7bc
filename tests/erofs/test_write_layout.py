# SPDX-License-Identifier: Apache-2.0
"""Placement of inodes: nothing overlaps, no inline tail crosses a block, almost nothing is wasted."""

from __future__ import annotations

import random
import stat
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from writer_check import write
from writer_trees import file

from erofs_edge.erofs.directory import Entries, block_bytes, split_blocks
from erofs_edge.erofs.layout import Packing, directory_blocks, footprint, place
from erofs_edge.erofs.ondisk import DIRENT, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN
from erofs_edge.erofs.plan import Node, choose_flat_layout
from erofs_edge.erofs.read import Image
from erofs_edge.tree import FileTree, Inode

HOLE = (1152 + 64, 4096)


def node(number: int, size: int, *, extended: bool = False, xattrs: int = 0, index: int = 0) -> Node:
    made = Node(Inode(stat.S_IFREG | 0o644), b"/x", number, None, size=size, extended=extended, xattrs=bytes(xattrs))
    if index:
        made.index = bytes(index)
    else:
        choose_flat_layout(made, 4096, 4096 - made.head_size)
    return made


def placed(nodes: list[Node], block_size: int = 4096) -> int:
    """Place nodes into HOLE and into blocks from 10 on. Return the block after the last one."""
    block = 10

    def allocate(count: int) -> int:
        nonlocal block
        block += count
        return block - count

    directories = directory_blocks(nodes, block_size)
    place(Packing(nodes, block_size, [HOLE]), directories, allocate)
    return block


def check(nodes: list[Node], end: int, block_size: int = 4096) -> None:
    spans = sorted((n.nid * 32, n.nid * 32 + footprint(n), n) for n in nodes)
    for (_, stop, _), (start, _, _) in pairwise(spans):
        assert stop <= start
    for start, stop, n in spans:
        assert HOLE[0] <= start < stop <= HOLE[1] or 10 * block_size <= start < stop <= end * block_size
        if n.tail_size:
            assert (stop - n.tail_size) // block_size == (stop - 1) // block_size


@given(
    st.lists(
        st.builds(
            lambda *a: a,
            st.integers(0, 20_000),
            st.booleans(),
            st.integers(0, 300).map(lambda n: 4 * n),
            st.sampled_from([0, 0, 0, 24, 400, 4000, 9000, 50_000]),
        ),
        max_size=80,
    )
)
def test_nothing_overlaps(shapes: list[tuple[int, bool, int, int]]) -> None:
    nodes = [node(i, s, extended=e, xattrs=x, index=k) for i, (s, e, x, k) in enumerate(shapes)]
    end = placed(nodes)
    check(nodes, end)


def test_wastes_next_to_nothing() -> None:
    rng = random.Random(4)
    nodes = [node(i, rng.randrange(12_000), index=rng.choice([0, 0, 32, 72])) for i in range(5000)]
    end = placed(nodes)
    check(nodes, end)
    slots = sum(-(-footprint(n) // 32) * 32 for n in nodes)
    assert (end - 10) * 4096 < slots * 1.01


def test_order_is_kept_within_a_block_and_near_it() -> None:
    nodes = [node(i, 100 + i % 7) for i in range(20)]
    placed(nodes)
    assert [n.nid for n in nodes] == sorted(n.nid for n in nodes)
    rng = random.Random(5)
    many = [node(i, rng.randrange(4000), index=rng.choice([0, 32])) for i in range(20_000)]
    end = placed(many)
    blocks = [n.nid * 32 // 4096 for n in many]
    assert sum(abs(a - b) > 3 * 512 // 2 for a, b in pairwise(blocks)) < 0.01 * len(many)
    check(many, end)


def test_near_holes_are_filled_before_far_ones_that_fit_better() -> None:
    sizes = [3968] * 512 + [4064] * 1024 + [3808, 64] * 256
    nodes = [node(i, size) for i, size in enumerate(sizes)]
    placed(nodes)
    assert min(n.nid * 32 for n in nodes[1536:]) > max(n.nid * 32 for n in nodes[:1536])
    short = [*nodes[:512], *(node(2000 + i, 64) for i in range(512))]
    assert placed(short) == 10 + 512


def test_a_tail_stands_inline_only_where_it_fits() -> None:
    for size, layout, blocks in [
        (0, LAYOUT_FLAT_PLAIN, 0),
        (1, LAYOUT_FLAT_INLINE, 0),
        (4064, LAYOUT_FLAT_INLINE, 0),
        (4065, LAYOUT_FLAT_PLAIN, 1),
        (4096, LAYOUT_FLAT_PLAIN, 1),
        (4097, LAYOUT_FLAT_INLINE, 1),
        (8192, LAYOUT_FLAT_PLAIN, 2),
    ]:
        made = node(1, size)
        assert (choose_flat_layout(made, 4096, 4064), made.layout) == (blocks, layout)
        assert made.tail_size == (size % 4096 if layout == LAYOUT_FLAT_INLINE else 0)
        assert choose_flat_layout(made, 4096, 0) == -(-size // 4096)


@given(
    st.sets(st.binary(min_size=1, max_size=255).filter(lambda n: n not in (b".", b"..")), max_size=60),
    st.sampled_from([512, 4096]),
    st.sampled_from([1, 1 << 31, 1 << 40]),
)
def test_directory_blocks(names: set[bytes], block_size: int, factor: int) -> None:
    blocks = split_blocks(names, block_size)
    assert [n for block in blocks for n in block] == sorted([*names, b".", b".."])
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        assert block and block_bytes(block) <= block_size
        if following:
            assert block_bytes([*block, following[0]]) > block_size
        targets = [SimpleNamespace(nid=-1) for _ in block]
        types = bytes([len(name) % 8 for name in block])
        entries = Entries(block, targets, types)
        for name, target in zip(block, targets, strict=True):
            target.nid = len(name) * factor
        raw = entries.block()
        assert len(raw) == block_bytes(block)
        nids, offsets, kinds = zip(*(DIRENT.unpack_from(raw, 12 * i) for i in range(len(block))), strict=True)
        assert nids == tuple(target.nid for target in targets)
        assert bytes(kinds) == types
        assert [raw[a:b] for a, b in zip(offsets, [*offsets[1:], len(raw)], strict=True)] == block


def first_reads(path: Path) -> list[int]:
    """Return the metadata blocks in the order in which a walk first needs them: a directory, then all inodes in it."""
    with Image(path) as image:
        size = image.superblock.block_size
        stack = [image.inode(image.root_nid)]
        blocks = [stack[0].offset // size]
        while stack:
            directory = stack.pop()
            for extent in image.extents(directory):
                blocks += range(extent.address // size, (extent.address + extent.length - 1) // size + 1)
            inodes = [image.inode(entry.nid) for entry in image.listdir(directory)]
            blocks += [inode.offset // size for inode in inodes]
            stack += [inode for inode in reversed(inodes) if inode.is_dir]
        return list(dict.fromkeys(blocks))


def test_a_walk_reads_one_block_after_the_other(tmp_path: Path) -> None:
    rng = random.Random(6)
    tree = FileTree()
    folders = [b""]
    for i in range(150):
        folders.append(rng.choice(folders) + b"/folder %d" % i)
        # some directories have blocks of their own
        for k in range(rng.choice([3, 10, 200])):
            tree.add(folders[-1] + b"/file %d" % k, file(bytes(rng.randrange(3000)), xattrs={b"user.k": b"%d" % k}))
    write(tree, tmp_path / "walk.img", compression="none")
    blocks = first_reads(tmp_path / "walk.img")
    assert len(blocks) > 1000
    assert sum(b == a + 1 for a, b in pairwise(blocks)) > 0.98 * len(blocks)


def test_spare_holes_come_last() -> None:
    nodes = [node(i, 32) for i in range(3)]
    spare = [(8192, 8192 + 64), (12288, 12288 + 128)]
    place(Packing(nodes, 4096, [(4096, 4096 + 128)], spare), {}, lambda _: 99)
    assert [n.nid * 32 for n in nodes] == [4096, 4096 + 64, 8192]
