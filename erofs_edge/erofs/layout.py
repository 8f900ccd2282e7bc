# SPDX-License-Identifier: Apache-2.0
"""Where each inode stands: best fit of inodes with what follows them into blocks, blocks in the order of a walk.

An inline tail must not cross a block border, so packing in plain order would leave a hole in most blocks. Best fit,
largest first, over a window of a few hundred inodes leaves almost none and keeps the inodes of a directory close to
each other. What is packed together becomes a block, and only then do blocks get their places: in the order in which a
walk over the tree, directory by directory, first needs them. Within a block inodes stand in order.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter

from erofs_edge.erofs.encode import encode, entries_of
from erofs_edge.erofs.ondisk import COMPACT_SIZE, EXTENDED_SIZE, SLOT_BITS, SLOT_SIZE
from erofs_edge.erofs.plan import Node, choose_flat_layout

WINDOW = 512  # inodes
NEAR = 2  # windows whose holes are filled first, so that an inode is rarely far from its neighbours


class _Area:
    """Blocks that lie together: one with inodes, or several with one long inode or with entries of `directory`."""

    __slots__ = ("blocks", "directory", "holes")

    def __init__(self, blocks: int, directory: Node | None = None) -> None:
        self.blocks = blocks
        self.directory = directory
        self.holes: list[_Hole] = []

    def hole(self, offset: int, free: int, age: int) -> _Hole:
        """A hole of this area; `offset` bytes from its start."""
        self.holes.append(_Hole(offset, free, age))
        return self.holes[-1]


class _Hole:
    """A piece of a block: `free` slots are left; its nodes (number, slots, node) will stand from byte `start` on, in
    order."""

    __slots__ = ("age", "free", "nodes", "start")

    def __init__(self, start: int, free: int, age: int) -> None:
        self.start = start
        self.free = free
        self.age = age
        self.nodes: list[tuple[int, int, Node]] = []

    def number(self, block_start: int) -> tuple[int, int]:
        """Give the nodes their nids, after `sort`; the bytes of the image that are left."""
        nid = block_start + self.start >> SLOT_BITS
        for _, slots, node in self.nodes:
            node.nid = nid
            nid += slots
        return nid << SLOT_BITS, nid + self.free << SLOT_BITS

    def sort(self) -> None:
        self.nodes.sort(key=itemgetter(0))


class _Holes:
    """Holes by how many slots they have left."""

    def __init__(self, holes: Iterable[_Hole] = ()) -> None:
        self._by_free: dict[int, list[_Hole]] = {}
        self._sizes = 0  # bit n: there is a hole with n slots
        for hole in holes:
            self.add(hole)

    def add(self, hole: _Hole) -> None:
        if hole.free:
            self._by_free.setdefault(hole.free, []).append(hole)
            self._sizes |= 1 << hole.free

    def take(self, slots: int) -> _Hole | None:
        """The hole with the fewest slots of those with enough, the oldest of equals. It is no longer in here."""
        fitting = self._sizes >> slots << slots
        if not fitting:
            return None
        free = (fitting & -fitting).bit_length() - 1
        holes = self._by_free[free]
        hole = holes.pop(0)
        if not holes:
            self._sizes &= ~(1 << free)
        return hole

    def move(self, other: _Holes, before: int) -> None:
        """Give the holes that are older to `other`."""
        for free, holes in self._by_free.items():
            for hole in holes:
                if hole.age < before:
                    other.add(hole)
            holes[:] = [hole for hole in holes if hole.age >= before]
            if not holes:
                self._sizes &= ~(1 << free)


def footprint(node: Node) -> int:
    """Bytes of an inode with all that must follow it without a gap."""
    size = (EXTENDED_SIZE if node.extended else COMPACT_SIZE) + len(node.xattrs)
    if index := node.index:
        size += -size % node.index_align + len(index)
    return size + node.tail_size


def slots_of(node: Node) -> int:
    """The same in slots."""
    return (len(node.body) or footprint(node)) + SLOT_SIZE - 1 >> SLOT_BITS


def directory_blocks(nodes: Iterable[Node], block_size: int) -> dict[Node, int]:
    """How many blocks of their own the entries of each directory need; those that need some. Sets their layout."""
    needs = {n: choose_flat_layout(n, block_size, block_size - n.head_size) for n in nodes if n.names}
    return {node: blocks for node, blocks in needs.items() if blocks}


def place(packing: Packing, directories: Mapping[Node, int], allocate: Callable[[int], int]) -> list[tuple[int, int]]:
    """Give each node of the packing its nid, and each of the directories its number of blocks; the pieces that are
    left, as Packing's `holes`. `allocate` gives the first of a number of free blocks. Nids count from byte 0 of the
    image."""
    areas, left = packing.finish()
    for area in areas:
        for hole in area.holes:
            hole.sort()
    areas += [_Area(blocks, directory) for directory, blocks in directories.items()]
    firsts = _first_children(packing.nodes, directories)
    for area in sorted(areas, key=lambda area: _first_need(area, firsts)):
        block = allocate(area.blocks)
        if area.directory is not None:
            area.directory.i_u = block
        left += [hole.number(block * packing.block_size) for hole in area.holes]
    return [(start, end) for start, end in left if start < end]


class Packing:
    """Which nodes come to stand together, window by window.

    `nodes` are in order. `holes` are free pieces (start, end) in bytes, start on a slot, each within one block; `spare`
    those that are used only where nothing else fits. `directories` is for who places them, see `place`.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        block_size: int,
        holes: Sequence[tuple[int, int]],
        spare: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.nodes, self.block_size = nodes, block_size
        self._old = [_Hole(start, (end - start) // SLOT_SIZE, NEAR + len(nodes)) for start, end in holes]
        self._last = [_Hole(start, (end - start) // SLOT_SIZE, -1) for start, end in spare]
        self._near, self._far = _Holes(self._old), _Holes(self._last)
        self._areas: list[_Area] = []
        self._packed = 0
        self.directories: Mapping[Node, int] = {}
        self.due = 0  # `advance` does nothing before this number

    def advance(self, number: int) -> None:
        """Every file before this number has all that will follow it, and it is known how long that of other nodes is:
        pack them, as far as windows are full. What needs no numbers of others is encoded at once."""
        end = self._packed + WINDOW
        while end <= len(self.nodes) and self.nodes[end - 1].number < number:
            files = []
            for node in self.nodes[self._packed : end]:
                if node.names:
                    node.entries = entries_of(node)
                elif node.inode.mode & 0o170000 != stat.S_IFLNK:
                    files.append(node)
            encode(files)
            self._pack()
            end += WINDOW
        self.due = self.nodes[min(end, len(self.nodes)) - 1].number + 1 if self.nodes else 0

    def finish(self) -> tuple[list[_Area], list[tuple[int, int]]]:
        """Pack the rest: areas that want places, and what is left of the holes. Nodes in these have their nids."""
        while self._packed < len(self.nodes):
            self._pack()
        for hole in (*self._old, *self._last):
            hole.sort()
        return self._areas, [hole.number(0) for hole in (*self._old, *self._last)]

    def _pack(self) -> None:
        """Every node of the next window into a hole, or a block of an area."""
        age, near, far, block_size = self._packed // WINDOW, self._near, self._far, self.block_size
        near.move(far, age - NEAR)
        window = self.nodes[self._packed : self._packed + WINDOW]
        alike: dict[int, list[tuple[int, int, Node]]] = defaultdict(list)
        for node in window:
            slots = (len(node.body) or footprint(node)) + SLOT_SIZE - 1 >> SLOT_BITS  # as slots_of
            alike[slots].append((node.number, slots, node))
        for slots in sorted(alike, reverse=True):
            entries, done = alike[slots], 0
            while done < len(entries):
                found = near.take(slots) or far.take(slots)
                if found is None and slots * SLOT_SIZE > block_size and entries[done][2].tail_size:
                    area = _across(entries[done][2], slots, age, block_size)
                    done += 1
                    self._areas.append(area)
                    near.add(area.holes[0])
                    near.add(area.holes[-1])
                    continue
                if found is None:
                    # more than a block only where nothing follows that must not cross a border
                    area = _Area(-(-slots * SLOT_SIZE // block_size))
                    self._areas.append(area)
                    found = area.hole(0, area.blocks * block_size // SLOT_SIZE, age)
                # what is left of the best hole is the best one for the next node of the same length
                count = found.free // slots
                some = entries[done : done + count]
                found.nodes += some
                found.free -= len(some) * slots
                done += len(some)
                (near if found.age >= age - NEAR else far).add(found)
        self._packed += len(window)


def _across(node: Node, slots: int, age: int, block_size: int) -> _Area:
    """A node longer than a block, with an inline tail: holes before it, of it, and behind it.

    It starts so that its tail neither crosses a border (tails leave room for the few bytes that slots round up) nor
    starts at one: kernels whose pages are larger than the blocks take the second block of a page for empty then
    (fs/erofs/decompressor.c, z_erofs_lz4_decompress_mem up to 6.18 at least).
    """
    tail_at = (footprint(node) - node.tail_size) % block_size
    before = 0
    if tail_at + node.tail_size > block_size:
        before = -(-(-tail_at % block_size) // SLOT_SIZE)
    if not (tail_at + before * SLOT_SIZE) % block_size:
        before += 1
    behind = before + slots
    area = _Area(-(-behind * SLOT_SIZE // block_size))
    area.hole(0, before, age)
    area.hole(before * SLOT_SIZE, 0, age).nodes.append((node.number, slots, node))
    area.hole(behind * SLOT_SIZE, area.blocks * block_size // SLOT_SIZE - behind, age)
    return area


def _first_children(nodes: Iterable[Node], directories: Iterable[Node]) -> dict[Node, int]:
    """Directory → number of the first of its entries that are among the nodes: before that one a walk reads the
    entries."""
    members = set(nodes)
    return {
        directory: next(
            (n.number for n in directory.children if n.parent is directory and n in members), directory.number
        )
        for directory in directories
    }


def _first_need(area: _Area, firsts: Mapping[Node, int]) -> tuple[int, bool]:
    """When a walk needs the area: before the inode with this number (False), or for it."""
    if area.directory is not None:
        return firsts[area.directory], False
    return min([hole.nodes[0][0] for hole in area.holes if hole.nodes]), True
