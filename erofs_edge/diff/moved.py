# SPDX-License-Identifier: Apache-2.0
"""Find files whose index in one image equals their index in another with every block number raised by the same amount.

That holds for most files of two builds whose data is in a different order. Their extents need only be decoded on one
side: on the other they are the same, shifted.

Source: ``fs/erofs/zmap.c`` (z_erofs_load_compact_lcluster): a pack of 8 or 32 bytes ends with a block number, to which
everything else in it is relative.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.mapheader import ZMap
from erofs_edge.erofs.read import Image

_NUMBER = 0xFFFFFFFF
_SMALL, _BIG = 8, 32
"""bytes of a pack; the last four are the block number"""


class Shift(NamedTuple):
    """Bytes from an old pcluster to the new one, and from an old inline tail to the new one."""

    blocks: int
    inline: int


class Run(NamedTuple):
    """Stored bytes [address, address + size) of the old image, contiguous in both; `shift` leads to the new ones."""

    address: int
    size: int
    shift: int


def comparable(old: Image, new: Image) -> bool:
    """Whether equal indexes mean the same in both images: one device, equal block sizes, features and algorithms."""
    one, other = old.superblock, new.superblock
    features = one.raw.feature_incompat == other.raw.feature_incompat
    equal = features and one.algorithms == other.algorithms and one.block_size == other.block_size
    return equal and not one.devices and not other.devices


def shift_of(old: Image, new: Image, before: DiskInode, after: DiskInode) -> Shift | None:
    """How far the data of a file has moved as a whole; None if its compact index alone does not tell.

    Both files have equal sizes above 0, and the images are `comparable`. Raises ErofsFormatError.
    """
    if before.layout != after.layout or not before.is_compressed:
        return None
    one, other = old.zmap(before), new.zmap(after)
    if not one.is_compact or one.fragment >= 0 or _form(one) != _form(other):
        return None
    x, y = (
        int.from_bytes(image.backing.read(zmap.position, zmap.index_size, "cluster index"), "little")
        for image, zmap in ((old, one), (new, other))
    )
    first, ones = _numbers(one.four_byte, one.two_byte, one.index_size)
    mask = ones * _NUMBER
    if (x ^ y) | mask != mask:
        return None
    further = (y >> first & _NUMBER) - (x >> first & _NUMBER)
    if (y & mask) - (x & mask) != further * ones:  # numbers are at least 64 bits apart: no carry hides a difference
        return None
    return Shift(further * old.superblock.block_size, other.position - one.position)


def _form(zmap: ZMap) -> tuple[object, ...]:
    """Everything in a map header that does not identify the file or its place."""
    return zmap[1:3] + zmap[4:]


@lru_cache(4096)
def _numbers(four_byte: int, two_byte: int, size: int) -> tuple[int, int]:
    """The block numbers' positions in an index: the first one's bit, and a one at the lowest bit of each."""
    middle, rest = four_byte * 4, four_byte * 4 + two_byte * 2
    ends = [*range(_SMALL, middle + 1, _SMALL), *range(middle + _BIG, rest + 1, _BIG)]
    ends += range(rest + _SMALL, size + 1, _SMALL)
    bits = [(end - 4) * 8 for end in ends]
    return bits[0], sum(1 << bit for bit in bits)


def runs(extents: list[Extent], shift: Shift, longest: int) -> Iterator[Run]:
    """The stored data of the old file, adjacent parts joined up to `longest` bytes; whole blocks except for an
    inline tail.
    """
    start = end = 0
    for extent in extents:
        if extent.kind is Kind.HOLE:
            continue
        if extent.inline:
            yield Run(extent.address, extent.size, shift.inline)
        elif extent.address == end and end - start + extent.size <= longest:
            end += extent.size
        else:
            if end > start:
                yield Run(start, end - start, shift.blocks)
            start, end = extent.address, extent.address + extent.size
    if end > start:
        yield Run(start, end - start, shift.blocks)
