# SPDX-License-Identifier: Apache-2.0
"""Where each inode stands: best fit of inodes with what follows them into blocks.

An inline tail must not cross a block border, so packing in plain order would leave a hole in most blocks. Best fit,
largest first, over a window of a few hundred inodes leaves almost none and keeps the inodes of a directory close to
each other. Within a block inodes stand in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from erofs_edge.erofs.ondisk import SLOT_BITS, SLOT_SIZE
from erofs_edge.erofs.plan import Node, choose_flat_layout

WINDOW = 512  # inodes
NEAR = 2  # windows whose holes are filled first, so that an inode is rarely far from its neighbours


class _Hole:
    """A piece of a block: `free` slots are left; its nodes will stand from byte `start` on, in order."""

    __slots__ = ("free", "nodes", "start")

    def __init__(self, start: int, free: int) -> None:
        self.start = start
        self.free = free
        self.nodes: list[Node] = []


class _Holes:
    """Holes by how many slots they have left."""

    def __init__(self) -> None:
        self._by_free: dict[int, list[_Hole]] = {}
        self._sizes = 0  # bit n: there is a hole with n slots

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
        """Give the holes that start before that byte to `other`."""
        for free, holes in self._by_free.items():
            for hole in holes:
                if hole.start < before:
                    other.add(hole)
            holes[:] = [hole for hole in holes if hole.start >= before]
            if not holes:
                self._sizes &= ~(1 << free)


def footprint(node: Node) -> int:
    """Bytes of an inode with all that must follow it without a gap."""
    size = node.head_size
    if node.index:
        size += -size % node.index_align + len(node.index)
    return size + node.tail_size


def place(nodes: Sequence[Node], *, hole: tuple[int, int], first_block: int, block_size: int) -> int:
    """Give each node its nid, and each directory its blocks; the block after the last one used.

    `hole` is a free piece (start, end) in bytes, start on a slot, within one block; blocks from `first_block` on are
    free. Nids count from byte 0 of the image.
    """
    every = [_Hole(hole[0], (hole[1] - hole[0]) // SLOT_SIZE)]
    near, far = _Holes(), _Holes()
    near.add(every[0])
    block = first_block
    starts = deque([0], maxlen=NEAR + 1)
    for at in range(0, len(nodes), WINDOW):
        window = nodes[at : at + WINDOW]
        starts.append(block * block_size)
        near.move(far, starts[0])
        block = _place_directories(window, block, block_size)
        for slots, node in sorted(((_slots(node), node) for node in window), key=lambda item: -item[0]):
            found = near.take(slots) or far.take(slots)
            if found is None:
                if slots * SLOT_SIZE > block_size and node.tail_size:
                    made, block = _place_across(node, slots, block, block_size)
                    every += made
                    near.add(made[0])
                    near.add(made[-1])
                    continue
                # more than a block only where nothing follows that must not cross a border
                blocks = -(-slots * SLOT_SIZE // block_size)
                found = _Hole(block * block_size, blocks * block_size // SLOT_SIZE)
                every.append(found)
                block += blocks
            found.nodes.append(node)
            found.free -= slots
            (near if found.start >= starts[0] else far).add(found)
    for found in every:
        offset = found.start
        for node in sorted(found.nodes, key=lambda n: n.number):
            node.nid = offset >> SLOT_BITS
            offset += _slots(node) * SLOT_SIZE
    return block


def _place_across(node: Node, slots: int, block: int, block_size: int) -> tuple[list[_Hole], int]:
    """A node longer than a block, with an inline tail: holes before it, of it, and behind it; the block after them.

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
    blocks = -(-(before + slots) * SLOT_SIZE // block_size)
    start = block * block_size
    own = _Hole(start + before * SLOT_SIZE, 0)
    own.nodes.append(node)
    behind = before + slots
    rest = _Hole(start + behind * SLOT_SIZE, blocks * block_size // SLOT_SIZE - behind)
    return [_Hole(start, before), own, rest], block + blocks


def _slots(node: Node) -> int:
    return -(-footprint(node) // SLOT_SIZE)


def _place_directories(window: Sequence[Node], block: int, block_size: int) -> int:
    for node in window:
        if node.inode.is_dir:
            blocks = choose_flat_layout(node, block_size, block_size - node.head_size)
            if blocks:
                node.i_u = block
                block += blocks
    return block
