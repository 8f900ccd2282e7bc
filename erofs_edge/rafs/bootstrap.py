# SPDX-License-Identifier: Apache-2.0
"""Encode a bootstrap, once it is known which blob holds each chunk.

Order of blocks: superblocks and device slots, blob table, inodes and directories, chunk table. Nids count from byte 0,
and the root is the first inode, because its nid has only 16 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from erofs_edge.erofs.attributes import AttributeRules, inline_area
from erofs_edge.erofs.chunks import device_slot
from erofs_edge.erofs.encode import encoded
from erofs_edge.erofs.identity import uuid_from
from erofs_edge.erofs.layout import Packing, directory_blocks, footprint, place
from erofs_edge.erofs.ondisk import (
    CHUNK_INDEXES,
    COMPAT_MTIME,
    DEVICE_SLOT,
    LAYOUT_CHUNK_BASED,
    NULL_ADDR,
    SLOT_BITS,
    SLOT_SIZE,
    SUPER_OFFSET,
    SUPERBLOCK,
    Superblock,
)
from erofs_edge.erofs.plan import Node, Plan, choose_flat_layout
from erofs_edge.errors import CapacityError
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.ondisk import BLOCK, Blob, Chunk, Extended

_RULES = AttributeRules(filter=False)  # the filter, which Nydus does not write


@dataclass(frozen=True, slots=True)
class Settled:
    """The final placement. blobs: in device order; chunks: those used by files, ordered by blob and number; files: the
    chunks of each file that has content, in order."""

    blobs: Sequence[Blob]
    chunks: Sequence[Chunk]
    files: dict[Node, list[Chunk]]


def encode_bootstrap(plan: Plan, settled: Settled, chunk_size: int) -> tuple[bytes, int]:
    """Return (the bootstrap, its number of blocks). Raises SourceError for attributes that no image can hold,
    CapacityError if the image is too large."""
    table_at = _round_up(ondisk.DEVICES_AT + len(settled.blobs) * DEVICE_SLOT.size, BLOCK)
    for node in plan.nodes:
        node.xattrs = inline_area(node.inode.xattrs, {}, node.where, _RULES)
        if node.inode.is_file:
            _refer(node, settled.files.get(node, ()), chunk_size)
    targets: dict[int, bytes] = {}
    end = _place(plan.nodes, table_at + _round_up(len(settled.blobs) * ondisk.BLOB.size, BLOCK), targets)
    for node in plan.nodes:
        node.ino = node.nid
    chunks = b"".join(ondisk.CHUNK.pack(*chunk) for chunk in settled.chunks)
    blocks = end + -(-len(chunks) // BLOCK)
    raw = bytearray(blocks * BLOCK)

    def write(offset: int, data: bytes | bytearray) -> None:
        raw[offset : offset + len(data)] = data

    extended = Extended(
        flags=_flags(plan.nodes),
        blob_table_offset=table_at if settled.blobs else BLOCK,
        blob_table_size=len(settled.blobs) * ondisk.BLOB.size,
        chunk_size=chunk_size,
        chunk_table_offset=end * BLOCK if chunks else 0,
        chunk_table_size=len(chunks),
    )
    write(ondisk.EXTENDED_AT, ondisk.EXTENDED.pack(*extended))
    write(ondisk.DEVICES_AT, _devices(settled.blobs, blocks))
    write(table_at, b"".join(ondisk.BLOB.pack(*blob) for blob in settled.blobs))
    for block, target in targets.items():
        write(block * BLOCK, target)
    for offset, data in encoded(plan.nodes, BLOCK):
        write(offset, data)
    write(end * BLOCK, chunks)
    uuid = uuid_from(hashlib.sha256(raw).digest(), b"")
    write(SUPER_OFFSET, _superblock(plan, settled, blocks, uuid))
    return bytes(raw), blocks


def _refer(node: Node, chunks: Sequence[Chunk], chunk_size: int) -> None:
    """Make a regular file chunk-based; Nydus has no other kind, even for empty files."""
    node.layout, node.tail_size, node.index_align = LAYOUT_CHUNK_BASED, 0, ondisk.CHUNK_ADDRESS.size
    node.i_u = CHUNK_INDEXES | (chunk_size // BLOCK).bit_length() - 1
    node.index = b"".join(ondisk.chunk_address(c.blob, c.number, c.address // BLOCK) for c in chunks)


def _place(nodes: Sequence[Node], start: int, targets: dict[int, bytes]) -> int:
    """Place all inodes from byte `start`, a block boundary; return the first block after them. Symlink targets that do
    not fit next to their inodes are put into `targets`, by block."""
    root, *others = nodes
    root.nid = start >> SLOT_BITS
    room = -(start + root.head_size) % BLOCK or BLOCK
    root_blocks = choose_flat_layout(root, BLOCK, room)
    hole = _round_up(start + footprint(root), SLOT_SIZE)
    block = _round_up(hole, BLOCK) // BLOCK
    if root_blocks:
        root.i_u = block
        block += root_blocks

    def allocate(count: int) -> int:
        nonlocal block
        block += count
        return block - count

    for node in others:
        if not node.inode.is_symlink:
            continue
        if choose_flat_layout(node, BLOCK, BLOCK - node.head_size):
            node.i_u = allocate(1)
            targets[node.i_u] = node.inode.target
        else:
            node.tail = node.inode.target
    holes = [(hole, _round_up(hole, BLOCK))] if hole % BLOCK else []
    place(Packing(others, BLOCK, holes), directory_blocks(others, BLOCK), allocate)
    if block >= NULL_ADDR:
        raise CapacityError(f"{block} blocks of metadata are more than a bootstrap can have")
    return block


def _flags(nodes: Sequence[Node]) -> int:
    named = {name: bit for bit, name in ondisk.FLAG_COMPRESSION.items()}["none"]
    named |= {name: bit for bit, name in ondisk.FLAG_DIGEST.items()}["sha256"]
    named |= {name: bit for bit, name in ondisk.FLAG_CIPHER.items()}["none"]
    has_xattr = ondisk.FLAG_HAS_XATTR if any(node.xattrs for node in nodes) else 0
    return named | ondisk.FLAG_EXPLICIT_UID_GID | has_xattr


def _devices(blobs: Sequence[Blob], blocks: int) -> bytes:
    """Encode the device slots. Blobs get addresses after the bootstrap, aligned to 512 KiB, as Nydus assigns them."""
    slots = b""
    at = blocks * BLOCK
    for blob in blobs:
        at = _round_up(at, ondisk.MAP_ALIGN)
        if at + blob.data >= NULL_ADDR * BLOCK:
            raise CapacityError("the blobs together are more than an image can address")
        slots += device_slot(blob.id, blob.data // BLOCK, at // BLOCK)
        at += blob.data
    return slots


def _superblock(plan: Plan, settled: Settled, blocks: int, uuid: bytes) -> bytes:
    """Encode without a checksum, which Nydus refuses. It also refuses a size if there are no blobs."""
    superblock = Superblock(
        feature_compat=ondisk.COMPAT | COMPAT_MTIME,
        rootnid_2b=plan.nodes[0].nid,
        inos=len(plan.nodes),
        epoch=plan.epoch,
        fixed_nsec=plan.epoch_ns,
        blocks_lo=blocks if settled.blobs else 0,
        uuid=uuid,
        feature_incompat=ondisk.INCOMPAT,
        extra_devices=len(settled.blobs),
        devt_slotoff=ondisk.DEVICES_AT // DEVICE_SLOT.size,
    )
    return SUPERBLOCK.pack(*superblock)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
