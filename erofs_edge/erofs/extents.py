# SPDX-License-Identifier: Apache-2.0
"""A common view of all data layouts: a file is a sequence of extents.

Sources: ``fs/erofs/data.c`` (erofs_map_blocks) for flat and chunk-based files; compressed ones are in zmap.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from struct import Struct
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import DEVICE_BITS, Backing, broken, place
from erofs_edge.erofs.inode import NULL_BLOCK, DiskInode
from erofs_edge.erofs.superblock import SuperInfo

_BLOCK_NUMBER = Struct("<I")
RAFS_DEVICE_MASK = 0xFF
_TABLE_WINDOW = 1024  # chunk table entries read at once
_CHUNK_FORMAT_KNOWN = ondisk.CHUNK_BITS_MASK | ondisk.CHUNK_INDEXES


class Kind(Enum):
    """How an extent's data is stored."""

    HOLE = "hole"  # zeros
    RAW = "raw"  # `length` bytes at `address`
    ROTATED = "rotated"  # raw bytes in one block, byte x of the file at x mod block size (interlaced)
    ENCODED = "encoded"  # a pcluster of `size` bytes at `address`
    FRAGMENT = "fragment"  # `length` bytes at `address` of the packed inode


class Extent(NamedTuple):
    """Bytes [start, start + length) of a file.

    address    byte address in the image, or in the packed inode for fragments
    size       bytes stored there (whole blocks, except for inline tails)
    algorithm  codec of an encoded extent
    partial    the pcluster decodes to more than this extent
    inline     the bytes follow the inode, without padding
    """

    start: int
    length: int
    kind: Kind
    address: int = 0
    size: int = 0
    algorithm: int = -1
    partial: bool = False
    inline: bool = False


def stored_blocks(extent: Extent, block_size: int) -> int:
    """Return the blocks that an extent takes up, counted as in i_u of compressed inodes: one for an inline tail."""
    return 0 if extent.kind in (Kind.HOLE, Kind.FRAGMENT) else -(-extent.size // block_size)


def flat_extents(backing: Backing, info: SuperInfo, inode: DiskInode) -> list[Extent]:
    """Return the extents of a flat file: at most a run of blocks and an inline tail.

    Raises ErofsFormatError if they leave the image or the tail crosses a block boundary.
    """
    block = info.block_size
    size = inode.size
    if not size:
        return []
    inline = inode.layout == ondisk.LAYOUT_FLAT_INLINE
    tail = size % block if inline else 0
    if inline and not tail:
        raise broken(f"inode {inode.nid}: inline data of {size} bytes has no tail", inode.offset)
    body = inode.body if tail else 0
    if body % block + tail > block:
        raise broken(f"inode {inode.nid}: inline tail of {tail} bytes crosses a block", body)
    extents = []
    if size > tail:
        length = size - tail
        if inode.block == NULL_BLOCK:
            extents.append(Extent(0, length, Kind.HOLE))
        else:
            stored = -(-length // block) * block
            address = _checked(backing, "inode", inode, inode.block * block, stored, inode.offset)
            extents.append(Extent(0, length, Kind.RAW, address, stored))
    if tail:
        _checked(backing, "inline tail of inode", inode, body, tail, inode.offset)
        extents.append(Extent(size - tail, tail, Kind.RAW, body, tail, -1, False, True))
    return extents


def chunk_table(backing: Backing, info: SuperInfo, inode: DiskInode) -> tuple[int, int, int, int]:
    """Return (byte address of the table, bytes per entry, entries, bytes per chunk). Raises ErofsFormatError.

    The feature bit for such files is not required: kernels do not check it, and mkfs.erofs sets it neither with --tar=i
    nor with -E dedupe for uncompressed files.
    """
    wide = inode.u & ondisk.CHUNK_48BIT
    if inode.u & ~(_CHUNK_FORMAT_KNOWN | ondisk.CHUNK_48BIT) or (
        wide and not (info.incompat(ondisk.INCOMPAT_48BIT) and inode.u & ondisk.CHUNK_INDEXES)
    ):
        raise broken(f"inode {inode.nid}: unknown bits in chunk format {inode.u:#x}", inode.offset)
    entry = ondisk.CHUNK_INDEX.size if inode.u & ondisk.CHUNK_INDEXES else _BLOCK_NUMBER.size
    table = -(-inode.body // entry) * entry
    chunk = info.block_size << (inode.u & ondisk.CHUNK_BITS_MASK)
    count = -(-inode.size // chunk)
    _checked(backing, "chunk table of inode", inode, table, count * entry, inode.offset)
    return table, entry, count, chunk


def chunk_extents(backing: Backing, info: SuperInfo, inode: DiskInode, offset: int) -> Iterator[Extent]:
    """Yield extents of a chunk-based file from the chunk with byte `offset` on, neighbours joined. Raises
    ErofsFormatError."""
    pending: Extent | None = None
    for extent in _chunks(backing, info, inode, offset):
        if pending is not None and pending.kind is extent.kind and pending.address + pending.size == extent.address:
            pending = pending._replace(length=pending.length + extent.length, size=pending.size + extent.size)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


def _chunks(backing: Backing, info: SuperInfo, inode: DiskInode, offset: int) -> Iterator[Extent]:
    table, entry, count, chunk = chunk_table(backing, info, inode)
    block = info.block_size
    struct = ondisk.CHUNK_INDEX if inode.u & ondisk.CHUNK_INDEXES else _BLOCK_NUMBER
    for first in range(offset // chunk, count, _TABLE_WINDOW):
        window = min(_TABLE_WINDOW, count - first)
        at = table + first * entry
        data = backing.read(at, window * entry, f"chunk table of inode {inode.nid}")
        for number, fields in enumerate(struct.iter_unpack(data)):
            start = (first + number) * chunk
            length = min(chunk, inode.size - start)
            where = at + number * entry
            address = _chunk_address(info, inode, fields, where)
            if address is None:
                yield Extent(start, length, Kind.HOLE)
                continue
            stored = -(-length // block) * block
            address = _checked(backing, "chunk of inode", inode, address, stored, where)
            yield Extent(start, length, Kind.RAW, address, stored)


def _chunk_address(info: SuperInfo, inode: DiskInode, fields: tuple[int, ...], where: int) -> int | None:
    """Return the address in an entry of a chunk table, None for a hole."""
    block, null, device = fields[-1], ondisk.NULL_ADDR, 0
    if inode.u & ondisk.CHUNK_INDEXES:
        high, device, _ = fields
        if info.is_rafs:  # the bits ignored by kernels number the chunk; see rafs/ondisk.py
            high, device = 0, device & RAFS_DEVICE_MASK
        if device > len(info.devices):
            raise broken(f"inode {inode.nid}: chunk on device {device}, which does not exist", where)
        if inode.u & ondisk.CHUNK_48BIT:
            block, null = block | high << 32, (1 << 48) - 1
        elif high and block != null:
            raise broken(f"inode {inode.nid}: 48-bit chunk address in an image without them", where)
    return None if block == null else (block << info.raw.blkszbits) + (device << DEVICE_BITS)


def _checked(backing: Backing, what: str, inode: DiskInode, address: int, size: int, where: int) -> int:
    """Resolve an address to its device after checking that the data is inside."""
    if not backing.holds(address, size):
        raise broken(f"{what} {inode.nid}: {size} bytes at {place(address)} lie outside the image", where)
    return backing.resolve(address)
