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
REACH = 8  # windows: older holes stay as they are, so that an inode is never far from its neighbours


class _Holes:
    """Free pieces of blocks by size in slots; each lies within one block."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[int]] = {}
        self._sizes = 0  # bit n: there is a hole of n slots
        self.members: dict[int, list[Node]] = {}

    def add(self, start: int, slots: int) -> None:
        """A free piece of `slots` slots at byte `start`."""
        self.members[start] = []
        self._put(start, slots)

    def take(self, node: Node, slots: int) -> bool:
        """Put a node into the smallest hole that holds it, the oldest of equals."""
        fitting = self._sizes >> slots << slots
        if not fitting:
            return False
        size = (fitting & -fitting).bit_length() - 1
        starts = self._by_size[size]
        start = starts.pop(0)
        if not starts:
            self._sizes &= ~(1 << size)
        self.members[start].append(node)
        self._put(start, size - slots)
        return True

    def forget(self, before: int) -> None:
        """No more use of holes that start before that byte."""
        for slots, starts in list(self._by_size.items()):
            kept = [start for start in starts if start >= before]
            self._by_size[slots] = kept
            if not kept:
                self._sizes &= ~(1 << slots)

    def _put(self, start: int, slots: int) -> None:
        if slots > 0:
            self._by_size.setdefault(slots, []).append(start)
            self._sizes |= 1 << slots


def footprint(node: Node) -> int:
    """Bytes of an inode with all that must follow it without a gap."""
    size = node.head_size
    if node.index:
        return (size + 7 & ~7) + len(node.index)
    return size + node.tail_size


def place(nodes: Sequence[Node], *, hole: tuple[int, int], first_block: int, block_size: int) -> int:
    """Give each node its nid, and each directory its blocks; the block after the last one used.

    `hole` is a free piece (start, end) in bytes, start on a slot, within one block; blocks from `first_block` on are
    free. Nids count from byte 0 of the image.
    """
    holes = _Holes()
    holes.add(hole[0], (hole[1] - hole[0]) // SLOT_SIZE)
    block = first_block
    starts = deque([first_block], maxlen=REACH)
    for at in range(0, len(nodes), WINDOW):
        window = nodes[at : at + WINDOW]
        if len(starts) == REACH:
            holes.forget(starts[0] * block_size)
        starts.append(block)
        block = _place_directories(window, block, block_size)
        sizes = [(footprint(node), node) for node in window]
        for size, node in sizes:
            if size > block_size:
                blocks = -(-size // block_size)
                node.nid = block * block_size >> SLOT_BITS
                end = -(-(block * block_size + size) // SLOT_SIZE) * SLOT_SIZE
                block += blocks
                holes.add(end, (block * block_size - end) // SLOT_SIZE)
        small = [(-(-size // SLOT_SIZE), node) for size, node in sizes if size <= block_size]
        for slots, node in sorted(small, key=lambda item: -item[0]):
            if not holes.take(node, slots):
                holes.add(block * block_size, block_size // SLOT_SIZE)
                block += 1
                holes.take(node, slots)
    for start, members in holes.members.items():
        offset = start
        for node in sorted(members, key=lambda n: n.number):
            node.nid = offset >> SLOT_BITS
            offset += -(-footprint(node) // SLOT_SIZE) * SLOT_SIZE
    return block


def _place_directories(window: Sequence[Node], block: int, block_size: int) -> int:
    for node in window:
        if node.inode.is_dir:
            blocks = choose_flat_layout(node, block_size, block_size - node.head_size)
            if blocks:
                node.i_u = block
                block += blocks
    return block
