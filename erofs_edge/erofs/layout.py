# SPDX-License-Identifier: Apache-2.0
"""Where each inode goes: inodes with what follows them are packed into blocks by best fit, and blocks follow the walk.

An inline tail must not cross a block boundary, so packing in plain order would leave a hole in most blocks. Best fit,
largest first, over a window of a few hundred inodes leaves almost none and keeps the inodes of a directory close
together. What is packed together becomes a block, and only then are blocks placed: in the order in which a walk over
the tree, directory by directory, first needs them. Within a block, inodes are in order.
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
NEAR = 2  # windows whose holes are filled first, so that inodes are rarely far from their neighbours


class _Area:
    """Adjacent blocks: one with inodes, or several with one long inode or with the entries of `directory`."""

    __slots__ = ("blocks", "directory", "holes")

    def __init__(self, blocks: int, directory: Node | None = None) -> None:
        self.blocks = blocks
        self.directory = directory
        self.holes: list[_Hole] = []

    def hole(self, offset: int, free: int, age: int) -> _Hole:
        """Add a hole to this area, `offset` bytes from its start."""
        self.holes.append(_Hole(offset, free, age))
        return self.holes[-1]


class _Hole:
    """A part of a block with `free` slots left. Its nodes (number, slots, node) go there from byte `start` on, in
    order."""

    __slots__ = ("age", "free", "nodes", "start")

    def __init__(self, start: int, free: int, age: int) -> None:
        self.start = start
        self.free = free
        self.age = age
        self.nodes: list[tuple[int, int, Node]] = []

    def number(self, block_start: int) -> tuple[int, int]:
        """Assign nids to the nodes, after `sort`. Return the range of image bytes that is left."""
        nid = block_start + self.start >> SLOT_BITS
        for _, slots, node in self.nodes:
            node.nid = nid
            nid += slots
        return nid << SLOT_BITS, nid + self.free << SLOT_BITS

    def sort(self) -> None:
        self.nodes.sort(key=itemgetter(0))


class _Holes:
    """Holes, by the number of slots they have left."""

    def __init__(self, holes: Iterable[_Hole] = ()) -> None:
        self._by_free: dict[int, list[_Hole]] = {}
        self._sizes = 0  # bit n: a hole with n slots exists
        for hole in holes:
            self.add(hole)

    def add(self, hole: _Hole) -> None:
        if hole.free:
            self._by_free.setdefault(hole.free, []).append(hole)
            self._sizes |= 1 << hole.free

    def take(self, slots: int) -> _Hole | None:
        """Remove and return the hole with the fewest slots among those with enough, the oldest of equals."""
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
        """Move holes older than `before` to `other`."""
        for free, holes in self._by_free.items():
            for hole in holes:
                if hole.age < before:
                    other.add(hole)
            holes[:] = [hole for hole in holes if hole.age >= before]
            if not holes:
                self._sizes &= ~(1 << free)


def footprint(node: Node) -> int:
    """Return the bytes of an inode with everything that must follow it without a gap."""
    size = (EXTENDED_SIZE if node.extended else COMPACT_SIZE) + len(node.xattrs)
    if index := node.index:
        size += -size % node.index_align + len(index)
    return size + node.tail_size


def slots_of(node: Node) -> int:
    """The same in slots."""
    return (len(node.body) or footprint(node)) + SLOT_SIZE - 1 >> SLOT_BITS


def directory_blocks(nodes: Iterable[Node], block_size: int) -> dict[Node, int]:
    """Return how many separate blocks directories need for their entries, if they need any. Sets their layout."""
    needs = {n: choose_flat_layout(n, block_size, block_size - n.head_size) for n in nodes if n.names}
    return {node: blocks for node, blocks in needs.items() if blocks}


def place(packing: Packing, directories: Mapping[Node, int], allocate: Callable[[int], int]) -> list[tuple[int, int]]:
    """Assign a nid to each node of the packing, and a block number to each of the directories. Return the pieces that
    are left, in the form of Packing's `holes`. `allocate` returns the first of a number of free blocks. Nids count from
    byte 0 of the image."""
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
    """Decides which nodes go together, window by window.

    `nodes` are in order. `holes` are free ranges (start, end) in bytes, each starting at a slot and within one block;
    `spare` ones are used only if nothing else fits. `directories` is for the code that places them, see `place`.
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
        self.due = 0  # `advance` does nothing below this number

    def advance(self, number: int) -> None:
        """Every file before this number has everything that will follow it, and for other nodes the size of that is
        known: pack them, as far as windows are full. What does not need the numbers of others is encoded at once."""
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
        """Pack the rest. Return the areas to be placed, and what is left of the holes; nodes in holes have their
        nids."""
        while self._packed < len(self.nodes):
            self._pack()
        for hole in (*self._old, *self._last):
            hole.sort()
        return self._areas, [hole.number(0) for hole in (*self._old, *self._last)]

    def _pack(self) -> None:
        """Put every node of the next window into a hole, or into a block of an area."""
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
                    # more than a block only if nothing follows that must not cross a boundary
                    area = _Area(-(-slots * SLOT_SIZE // block_size))
                    self._areas.append(area)
                    found = area.hole(0, area.blocks * block_size // SLOT_SIZE, age)
                # the rest of the best hole is the best one for the next node of the same size
                count = found.free // slots
                some = entries[done : done + count]
                found.nodes += some
                found.free -= len(some) * slots
                done += len(some)
                (near if found.age >= age - NEAR else far).add(found)
        self._packed += len(window)


def _across(node: Node, slots: int, age: int, block_size: int) -> _Area:
    """Make an area for a node longer than a block with an inline tail: a hole before it, its own, and one after it.

    The start is chosen so that its tail does not cross a boundary (tails leave room for the few bytes by which slots
    round up) and does not start at one: kernels with pages larger than the blocks then take the second block of a page
    for empty (fs/erofs/decompressor.c, z_erofs_lz4_decompress_mem up to 6.18 at least).
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
    """Map each directory to the number of its first entry among the nodes: a walk reads the entries before that one."""
    members = set(nodes)
    return {
        directory: next(
            (n.number for n in directory.children if n.parent is directory and n in members), directory.number
        )
        for directory in directories
    }


def _first_need(area: _Area, firsts: Mapping[Node, int]) -> tuple[int, bool]:
    """Return when a walk needs the area: before the inode with this number (False), or for it (True)."""
    if area.directory is not None:
        return firsts[area.directory], False
    return min([hole.nodes[0][0] for hole in area.holes if hole.nodes]), True
