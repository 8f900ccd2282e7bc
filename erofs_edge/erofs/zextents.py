# SPDX-License-Identifier: Apache-2.0
"""Map compressed files whose index is a table of encoded extents (6.15, with 48BIT).

Source: ``fs/erofs/zmap.c`` (z_erofs_map_blocks_ext) and ``struct z_erofs_extent``. Addresses are in bytes and need no
alignment. The table is read in windows, so memory use does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import ErofsFormatError

_WINDOW = 512  # records read at once
_START = Struct("<Q")
_RECORDS = {4: Struct("<I"), 8: Struct("<II"), 16: Struct("<IIII"), 32: Struct("<IIIII12x")}
_PLEN_MASK = 2 * ondisk.PCLUSTER_MAX - 1
_PLEN_PARTIAL = 1 << 27
_PLEN_FORMAT = 28  # 0 for raw bytes, else the algorithm plus one


class _Record(NamedTuple):
    number: int
    start: int
    plen: int
    address: int


def encoded_extents(backing: Backing, info: SuperInfo, zmap: ZMap, offset: int) -> Iterator[Extent]:
    """Yield extents from the one with byte `offset` on, in order, covering the rest of the file.

    Raises ErofsFormatError if the table contradicts itself or an extent leaves the image.
    """
    size = zmap.inode.size
    previous: _Record | None = None
    for record in _from(backing, zmap, offset):
        if previous is not None:
            if not previous.start < record.start < size:
                raise _wrong(zmap, record, f"starts at {record.start}, the one before at {previous.start}")
            if record.start > offset:
                yield _extent(backing, info, zmap, previous, record.start)
        elif bool(record.start) != bool(record.number):
            raise _wrong(zmap, record, f"starts at {record.start}")
        previous = record
    if previous is not None:
        yield _extent(backing, info, zmap, previous, size)


def _from(backing: Backing, zmap: ZMap, offset: int) -> Iterator[_Record]:
    """Yield records from the one with byte `offset` on. Records of 4 bytes are summed up from the first one on."""
    bits = zmap.lcluster_bits
    if zmap.record == 4:
        (address,) = backing.unpack(_START, zmap.position, "extent table")
        for number, (plen,) in _records(backing, zmap, 0, zmap.position + _START.size):
            if number + 1 << bits > offset:
                yield _Record(number, number << bits, plen, address)
            address += plen & _PLEN_MASK
    elif zmap.record == 8:
        for number, (plen, address) in _records(backing, zmap, offset >> bits, zmap.position):
            yield _Record(number, number << bits, plen, address)
    else:
        for number, (plen, low, high, start, *more) in _records(backing, zmap, _search(backing, zmap, offset)):
            yield _Record(number, start | (more[0] << 32 if more else 0), plen, low | high << 32)


def _records(backing: Backing, zmap: ZMap, first: int, position: int = 0) -> Iterator[tuple[int, tuple[int, ...]]]:
    struct = _RECORDS[zmap.record]
    position = position or zmap.position
    for start in range(first, zmap.lclusters, _WINDOW):
        count = min(_WINDOW, zmap.lclusters - start)
        data = backing.read(position + start * zmap.record, count * zmap.record, "extent table")
        yield from enumerate(struct.iter_unpack(data), start)


def _search(backing: Backing, zmap: ZMap, offset: int) -> int:
    """Return the number of the last record that starts at or before `offset`, 0 if there is none."""
    low, high = 0, zmap.lclusters
    while high - low > 1:
        middle = (low + high) // 2
        fields = backing.unpack(_RECORDS[zmap.record], zmap.position + middle * zmap.record, "extent table")
        start = fields[3] | (fields[4] << 32 if len(fields) > 4 else 0)
        low, high = (middle, high) if start <= offset else (low, middle)
    return low


def _extent(backing: Backing, info: SuperInfo, zmap: ZMap, record: _Record, end: int) -> Extent:
    start, plen, address = record.start, record.plen, record.address
    length = end - start
    if end == zmap.inode.size and zmap.fragment >= 0:
        return Extent(start, length, Kind.FRAGMENT, plen | (address << 32 if zmap.record > 4 else 0))
    size = plen & _PLEN_MASK
    if not size:
        return Extent(start, length, Kind.HOLE)
    if size > ondisk.PCLUSTER_MAX:
        raise _wrong(zmap, record, f"has a pcluster of {size} bytes, over 1 MiB")
    if not backing.holds(address, size):
        raise _wrong(zmap, record, f"has a pcluster at {address:#x} to {address + size:#x}, outside the image")
    address = backing.resolve(address)
    partial = bool(plen & _PLEN_PARTIAL)
    algorithm = (plen >> _PLEN_FORMAT) - 1
    if algorithm < 0:
        aligned = not (address | size) % info.block_size
        rotated = aligned and bool(zmap.advise & ondisk.ADVISE_INTERLACED_PCLUSTER)
        if length > size or (rotated and size > info.block_size):
            raise _wrong(zmap, record, f"has {length} raw bytes in a pcluster of {size}")
        return Extent(start, length, Kind.ROTATED if rotated else Kind.RAW, address, size)
    if length > ondisk.EXTENT_MAX:
        raise _wrong(zmap, record, f"has {length} bytes, over 12 MiB")
    if not info.algorithms >> algorithm & 1:
        name = ondisk.ALGORITHM_NAMES.get(algorithm, f"algorithm {algorithm}")
        raise _wrong(zmap, record, f"uses {name}, which the superblock does not list")
    return Extent(start, length, Kind.ENCODED, address, size, algorithm, partial)


def _wrong(zmap: ZMap, record: _Record, message: str) -> ErofsFormatError:
    where = zmap.position + record.number * zmap.record + (_START.size if zmap.record == 4 else 0)
    return broken(f"inode {zmap.inode.nid}: extent {record.number} {message}", where)
