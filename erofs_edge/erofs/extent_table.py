# SPDX-License-Identifier: Apache-2.0
"""Write indexes in the form introduced with 48-bit addresses (Linux 6.15): a table of encoded extents.

Sources: ``fs/erofs/erofs_fs.h`` (struct z_erofs_extent) and ``fs/erofs/zmap.c`` (z_erofs_map_blocks_ext). There is one
record per extent, whatever its length, with a 64-bit byte address. With long extents this is shorter than an entry per
block of data, and it is the only form whose addresses reach beyond block 2**32. The gap between map header and records
is zeros; mkfs.erofs 1.9.4 leaves uninitialized memory there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from erofs_edge.erofs.index import Extent, Site
from erofs_edge.erofs.ondisk import ADVISE_EXTENTS, ADVISE_FRAGMENT_PCLUSTER, NULL_ADDR, PCLUSTER_MAX

_HEADER = Struct("<IHH")  # extents_lo, h_advise, extents_hi
_SHORT = Struct("<IIII")  # plen, pstart_lo, pstart_hi, lstart_lo
_LONG = Struct("<IIIII12x")  # the same, lstart_hi
_RECORD_SHIFT = 1  # in h_advise: two bits, log2 of the record size, minus 2
_PLEN_PARTIAL = 1 << 27
_PLEN_FORMAT = 28  # 0 for raw bytes, else the algorithm plus one


def build_table(extents: Sequence[Extent], size: int, site: Site) -> bytes:
    """Encode map header and table of a file of `size` bytes. A fragment must not be the only extent."""
    record, fragment = _SHORT if size <= NULL_ADDR else _LONG, site.fragment
    rows = list(_rows(extents, site.block_bits, site.first_block, site.algorithm))
    advise = ADVISE_EXTENTS | (record.size.bit_length() - 3) << _RECORD_SHIFT
    if fragment >= 0:
        advise |= ADVISE_FRAGMENT_PCLUSTER
        rows[-1] = fragment & NULL_ADDR, fragment >> 32, rows[-1][2]
    out = bytearray(_HEADER.pack(len(rows) & NULL_ADDR, advise, len(rows) >> 32))
    out += bytes(-(site.position + len(out)) % record.size)
    for plen, address, start in rows:
        fields = plen, address & NULL_ADDR, address >> 32, start & NULL_ADDR
        out += record.pack(*fields) if record is _SHORT else record.pack(*fields, start >> 32)
    return bytes(out)


def _rows(
    extents: Sequence[Extent], block_bits: int, first_block: int, algorithm: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (plen, byte address, byte of the file) of each record; raw bytes are split to what plen can express."""
    start, block = 0, first_block
    for extent in extents:
        address = (block if extent.place < 0 else extent.place) << block_bits
        stored = extent.blocks << block_bits
        if extent.raw:
            for at in range(0, extent.length, PCLUSTER_MAX):
                yield min(PCLUSTER_MAX, stored - at), address + at, start + at
        else:
            plen = stored | (_PLEN_PARTIAL if extent.partial else 0) | algorithm + 1 << _PLEN_FORMAT
            yield plen, address, start
        start += extent.length
        block += extent.own
