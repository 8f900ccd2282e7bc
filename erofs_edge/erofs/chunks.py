# SPDX-License-Identifier: Apache-2.0
"""Chunk-based files: equal chunks are stored once and chunks of zeros not at all, on this device or another.

Source: ``fs/erofs/erofs_fs.h`` (struct erofs_inode_chunk_info, erofs_inode_chunk_index). A table after the inode lists
the first block of each chunk. If neighbouring chunks are contiguous on the device, the file gets larger chunks and so a
shorter table.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

from erofs_edge.erofs.contents import ZEROS
from erofs_edge.erofs.identity import content_digest
from erofs_edge.erofs.ondisk import (
    CHUNK_48BIT,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    DEVICE_SLOT,
    INCOMPAT_48BIT,
    INCOMPAT_CHUNKED_FILE,
    LAYOUT_CHUNK_BASED,
    NULL_ADDR,
)
from erofs_edge.erofs.output import Sink
from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.spool import Spool

CHUNK_BITS_MAX = 30  # log2 of bytes: 32-bit kernels shift a long by it
HOLE = -1
DEVICE_SHIFT = 48  # a chunk's address: its device number, then its block there
_BLOCK_MASK = (1 << DEVICE_SHIFT) - 1


class ChunkStore:
    """Takes files piece by piece. `device` is the number of the device that `sink` becomes, 0 for the image itself.
    `known` are addresses of existing chunks by their sha256. With `moves`, addresses become final only in `settle`.

    files     number of files stored; `equal` and `holes`: chunks that needed no blocks
    features  incompatible bits that their tables need
    """

    def __init__(
        self,
        sink: Sink | Spool,
        block_bits: int,
        chunk_size: int,
        *,
        indexes: bool,
        device: int,
        known: dict[bytes, int] | None = None,
        moves: bool = False,
    ) -> None:
        self._sink = sink
        self._block_bits = block_bits
        self._chunk_size = chunk_size
        self._indexes = indexes
        self._device = device << DEVICE_SHIFT
        self._known = known or {}
        self._moves = moves or isinstance(sink, Spool)
        self._zeros = bytes(chunk_size)
        self._table: list[int] = []
        self._copies: list[tuple[Node, Node]] = []
        self._unsettled: list[tuple[Node, list[int]]] = []
        self.files = self.equal = self.holes = self.features = 0

    def take(self, node: Node, data: bytes | memoryview, offset: int) -> None:
        """Store bytes of a file from `offset`, a multiple of the chunk size. The last piece completes the node."""
        if not offset:
            self._table = []
        if data is ZEROS:  # a multiple of every chunk size
            holes = len(ZEROS) // self._chunk_size
            self._table += [HOLE] * holes
            self.holes += holes
        else:
            view = memoryview(data)
            for at in range(0, len(data), self._chunk_size):
                self._table.append(self._store(view[at : at + self._chunk_size], node.path, offset + at))
        if offset + len(data) == node.size:
            self._finish(node)

    def copy(self, node: Node, original: Node) -> None:
        """Give a file the chunks of another one."""
        node.layout, node.i_u = original.layout, original.i_u
        node.index, node.index_align = original.index, original.index_align
        self._copies.append((node, original))

    def settle(self, where: Callable[[int], int]) -> None:
        """Give chunks their final blocks in the image. May be called again whenever these change."""
        for node, table in self._unsettled:
            self._set_table(node, [block if block == HOLE else where(block) for block in table])
        for node, original in self._copies:
            node.i_u, node.index = original.i_u, original.index

    @property
    def addresses(self) -> set[int]:
        """Addresses of all chunks, until they are settled."""
        return {address for _, table in self._unsettled for address in table}

    def _store(self, chunk: memoryview, path: bytes, offset: int) -> int:
        """Store a chunk of that file and return its address, HOLE for zeros."""
        if chunk == self._zeros[: len(chunk)]:
            self.holes += 1
            return HOLE
        key = hashlib.sha256(chunk).digest()
        block = self._known.get(key)
        if block is not None:
            self.equal += 1
            if isinstance(self._sink, Spool):
                self._sink.use(block, path, offset, offset + len(chunk))
            return block
        if isinstance(self._sink, Spool):
            self._sink.start(path, offset, offset + len(chunk))
        block = self._known[key] = self._device | self._sink.position >> self._block_bits
        self._sink.append([chunk])
        if padding := -len(chunk) % (1 << self._block_bits):
            self._sink.append([bytes(padding)])
        return block

    def _finish(self, node: Node) -> None:
        self.files += 1
        if self._moves:
            self._unsettled.append((node, self._table))
        self._set_table(node, self._table)

    def _set_table(self, node: Node, table: Sequence[int]) -> None:
        self.features |= set_table(node, table, self._chunk_size, self._block_bits, indexes=self._indexes)


def set_table(node: Node, table: Sequence[int], chunk_size: int, block_bits: int, *, indexes: bool = False) -> int:
    """Make a node chunk-based. Return the incompatible bits that this needs.

    `table` has an address (see DEVICE_SHIFT), or HOLE, for each chunk of `chunk_size` bytes. `indexes` requests the
    longer form of entries, which devices and blocks beyond 32 bits need in any case.
    """
    chunk_bits = chunk_size.bit_length() - 1
    table, more = merge(table, chunk_size >> block_bits, CHUNK_BITS_MAX - chunk_bits)
    node.layout = LAYOUT_CHUNK_BASED
    node.i_u = chunk_bits + more - block_bits
    far = any(address & _BLOCK_MASK >= NULL_ADDR for address in table if address != HOLE)
    if not far and not indexes and max(table, default=HOLE) < NULL_ADDR:
        node.index = struct.pack(f"<{len(table)}I", *(NULL_ADDR if address == HOLE else address for address in table))
        node.index_align = 4
        return INCOMPAT_CHUNKED_FILE
    node.index_align = 8
    node.i_u |= CHUNK_INDEXES | (CHUNK_48BIT if far else 0)
    hole = CHUNK_INDEX.pack(0xFFFF if far else 0, 0, NULL_ADDR)
    node.index = b"".join(hole if address == HOLE else _entry(address) for address in table)
    return INCOMPAT_CHUNKED_FILE | (INCOMPAT_48BIT if far else 0)


def _entry(address: int) -> bytes:
    block = address & _BLOCK_MASK
    return CHUNK_INDEX.pack(block >> 32, address >> DEVICE_SHIFT, block & NULL_ADDR)


def finish_device(sink: Sink, block_size: int) -> tuple[bytes, int]:
    """Complete an extra device. Return its tag (the sha256 in hex) and its number of blocks."""
    if not sink.position:
        sink.append([bytes(block_size)])  # an empty device cannot be mounted
    sink.finish(sink.position)
    assert sink.hashing is not None  # noqa: S101 - it was opened with one
    content = content_digest(sink, sink.position) if sink.was_rewound else sink.hashing.digest()
    return content.hex().encode(), sink.position // block_size


def device_slot(tag: bytes, blocks: int, first: int) -> bytes:
    """Encode the table's record of a device of `blocks` blocks (struct erofs_deviceslot).

    Its blocks are numbered from `first` on, after the image's, so that both in one file mount as they are.
    """
    return DEVICE_SLOT.pack(tag, blocks & NULL_ADDR, first & NULL_ADDR, blocks >> 32, first >> 32)


def merge(table: Sequence[int], blocks: int, most: int) -> tuple[Sequence[int], int]:
    """Return (a table with chunks of 2**n times the size, n) for the largest n up to `most` that is equivalent.

    `blocks` is the number of blocks of a chunk.
    """
    doublings = 0
    while len(table) > 1 and doublings < most:
        pairs = zip(table[::2], table[1::2], strict=False)
        if not all(b == (a if a == HOLE else a + blocks) for a, b in pairs):
            break
        table, blocks = table[::2], blocks * 2
        doublings += 1
    return table, doublings
