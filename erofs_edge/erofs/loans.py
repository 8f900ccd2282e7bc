# SPDX-License-Identifier: Apache-2.0
"""Files whose data already is on extra devices: older images, blobs, archives. Nothing of it is copied.

Sources: ``fs/erofs/erofs_fs.h`` (struct erofs_deviceslot), ``fs/erofs/super.c`` (erofs_init_device) and ``data.c``
(erofs_map_dev). Entries of chunk tables name a device and its block. Flat and compressed files name blocks of a single
address space, in which the devices follow the image. The image's size is known last, so `settle` assigns block numbers
to these files when everything is placed. Devices that end up unused are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from erofs_edge.erofs.chunks import CHUNK_BITS_MAX, DEVICE_SHIFT, HOLE, device_slot, set_table
from erofs_edge.erofs.extent_table import build_table
from erofs_edge.erofs.index import Extent, Site, build_index, layout_for
from erofs_edge.erofs.ondisk import (
    INCOMPAT_48BIT,
    INCOMPAT_DEDUPE,
    INCOMPAT_ZTAILPACKING,
    LAYOUT_COMPRESSED_FULL,
    NULL_ADDR,
)
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.plan import Node, choose_flat_layout, reach

DEVICES_MAX = 0xFFFF
_BLOCK_MASK = (1 << DEVICE_SHIFT) - 1


@dataclass(slots=True, eq=False)
class Device:
    """An extra device of the image being written.

    path    what has to be given when mounting
    tag     at most 64 bytes that identify it
    blocks  number of its blocks
    first   number of its first block in the common address space; -1 until known
    number  in the table, from 1 on; 0 if it is not in it
    """

    path: Path
    tag: bytes
    blocks: int
    first: int = -1
    number: int = 0


class _Compressed(NamedTuple):
    """A compressed file. The places of its extents are addresses; if `run`, they are contiguous."""

    extents: list[Extent]
    algorithm: int
    run: bool
    full: bool


@dataclass(slots=True)
class Loans:
    """What the devices lend. An address is a device's place in `devices` plus one, above DEVICE_SHIFT, and a block.

    own    the first device is being written, too
    far    block numbers of the common address space may need more than 32 bits
    files  files that need no data of their own, `size` bytes in total; `features`: bits that they need
    """

    devices: list[Device]
    options: WriteOptions
    own: bool = False
    far: bool = False
    big: bool = False
    files: int = 0
    size: int = 0
    features: int = 0
    _used: set[int] = field(default_factory=set)
    _chunked: list[tuple[Node, list[int], int]] = field(default_factory=list)
    _flat: list[tuple[Node, int]] = field(default_factory=list)
    _compressed: list[tuple[Node, _Compressed]] = field(default_factory=list)
    _pclusters: set[int] = field(default_factory=set)

    def use(self, address: int) -> None:
        """Mark the device of this address as used."""
        if address != HOLE:
            self._used.add(address >> DEVICE_SHIFT)

    def chunks(self, node: Node, table: list[int], chunk_size: int) -> None:
        """Lend a file of chunks, each at an address or a HOLE."""
        for address in set(table):
            self.use(address)
        self._chunked.append((node, table, chunk_size))
        self._set_chunks(node, table, chunk_size)
        self._lend(node)

    def flat(self, node: Node, address: int, tail: bytes) -> bool:
        """Lend a file of contiguous blocks, with its `tail` next to the inode; False if there is no room for that.

        Without a tail it becomes one of chunks, as large as possible: erofs-utils (up to 1.9.4 at least) look for
        blocks of the common address space in the image itself, but read chunks from their device.
        """
        bits = self.options.block_bits
        if not tail:
            chunk = 1 << min(CHUNK_BITS_MAX, max(bits, (node.size - 1).bit_length()))
            self.chunks(node, [address + (at >> bits) for at in range(0, node.size, chunk)], chunk)
            return True
        if self.far:
            reach(node, NULL_ADDR, self.options)
        choose_flat_layout(node, self.options.block_size, self.options.block_size - node.head_size)
        if node.tail_size != len(tail):
            return False
        node.tail = tail
        self.use(address)
        self._flat.append((node, address))
        node.i_u = address & _BLOCK_MASK
        self._lend(node)
        return True

    def compressed(self, node: Node, extents: list[Extent], algorithm: int, tail: bytes) -> bool:
        """Lend a compressed file, whose extents are at addresses; False if no index here can express it."""
        bits = self.options.block_bits
        if self.far and tail:
            return False
        places = [extent for extent in extents if extent.blocks]
        heads: list[int] = []
        start = 0
        for extent in extents:
            step = self.options.block_size if extent.raw and extent.blocks else extent.length
            heads += range(start, start + extent.length, step)
            start += extent.length
        run = all(b.place == a.place + a.blocks for a, b in pairwise(places))
        partial = any(extent.partial for extent in extents)
        long = any(extent.length >> bits >= 2000 for extent in extents)  # a compact index has 11 bits for distances
        if not self.far and any(b >> bits == a >> bits for a, b in pairwise(heads)):
            return False  # two start in one block of the file: only extent tables support that
        shared = {extent.place for extent in places}
        if not run or partial or not shared.isdisjoint(self._pclusters):
            self.features |= INCOMPAT_DEDUPE
        self._pclusters |= shared
        for address in shared:
            self.use(address)
        if tail:
            self.features |= INCOMPAT_ZTAILPACKING
        if self.far:
            self.features |= INCOMPAT_48BIT
        node.tail, node.tail_size = tail, len(tail)
        node.i_u = sum(extent.blocks for extent in extents) + bool(tail)
        full = self.options.full_index or not run or partial or long
        what = _Compressed(extents, algorithm, run, full)
        self._compressed.append((node, what))
        self._set_index(node, what)
        self._lend(node)
        return True

    def settle(self, blocks: int) -> bytes:
        """Number the devices, once all else is placed and the image's number of blocks is known. Return their table."""
        slots: list[bytes] = []
        first = blocks
        for place, device in enumerate(self.devices, 1):
            if place not in self._used and not (self.own and place == 1):
                continue
            device.first, device.number = first, len(slots) + 1
            first += device.blocks
            slots.append(device_slot(device.tag, device.blocks, device.first))
        if first > NULL_ADDR:
            self.features |= INCOMPAT_48BIT
        for node, table, chunk_size in self._chunked:
            self._set_chunks(node, [self.renumbered(address) for address in table], chunk_size)
        for node, address in self._flat:
            node.i_u = self._block(address)
        for node, what in self._compressed:
            self._set_index(node, what)
        return b"".join(slots)

    @property
    def used(self) -> list[Device]:
        """The devices of the image in order, once settled."""
        return [device for device in self.devices if device.number]

    def renumbered(self, address: int) -> int:
        """Convert an address to the device number of the table, as entries of chunk tables need it."""
        if address == HOLE or not address >> DEVICE_SHIFT:
            return address
        return self.devices[(address >> DEVICE_SHIFT) - 1].number << DEVICE_SHIFT | address & _BLOCK_MASK

    def _block(self, address: int) -> int:
        """Return a block's number in the common address space; until that is known, its number on the device."""
        first = self.devices[(address >> DEVICE_SHIFT) - 1].first
        return max(first, 1) + (address & _BLOCK_MASK)

    def _lend(self, node: Node) -> None:
        node.lent = True
        self.files += 1
        self.size += node.size

    def _set_chunks(self, node: Node, table: Sequence[int], chunk_size: int) -> None:
        self.features |= set_table(node, table, chunk_size, self.options.block_bits, indexes=self.options.chunk_indexes)

    def _set_index(self, node: Node, what: _Compressed) -> None:
        extents = [e._replace(place=self._block(e.place)) if e.blocks else e for e in what.extents]
        bits = self.options.block_bits
        first = next((extent.place for extent in extents if extent.blocks), 1)
        site = Site(bits, first, node.head_size + 7 & ~7, algorithm=what.algorithm)
        if self.far:
            node.layout = LAYOUT_COMPRESSED_FULL
            node.index = build_table(extents, node.size, site)
            return
        node.layout = layout_for(bits, full=what.full)
        node.index = build_index(
            [e._replace(place=-1) for e in extents] if what.run else extents,
            node.size,
            site,
            big=self.big,
            inline=node.tail_size,
            full=what.full,
        )
