# SPDX-License-Identifier: Apache-2.0
"""How much more room a packed inode takes whose parts kept their places than one that is put together anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.places import Ranges

SPARSE = 2  # times what is used: more bytes are not in it, though gaps take hardly any room once compressed
COLD_START = 64  # a pcluster that starts with nothing to refer to is about 1/64 larger
LOOSE = 50  # it may take 1/50 more than one without gaps, and a pcluster in any case


class Weight(NamedTuple):
    """About how many bytes of blocks are too much, and whether that is more than it may be."""

    excess: int
    is_loose: bool


def weigh(extents: Sequence[Extent], unused: Sequence[int], used: Ranges, pcluster: int, block_size: int) -> Weight:
    """Weigh the extents of a packed inode, of which `unused` bytes of each are padding; `pcluster` in bytes.

    What there is too much of: the room that pclusters leave empty, and what it costs that there are more of them than
    full ones could hold, since each starts with nothing to refer to.
    """
    empty = filled = count = stored = at = 0
    for extent, padding in zip(extents, unused, strict=False):  # what is inline has none
        if extent.raw:
            empty += extent.length - used.within(at, at + extent.length)
        else:
            empty += padding
            filled += extent.blocks * block_size - padding
            count += 1
        stored += extent.blocks * block_size
        at += extent.length
    excess = empty + max(0, count - filled // pcluster - 1) * (pcluster // COLD_START)
    sparse = at > SPARSE * used.within(0, at)
    return Weight(excess, sparse or excess > max((stored - excess) // LOOSE, pcluster))
