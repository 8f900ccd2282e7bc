# SPDX-License-Identifier: Apache-2.0
"""How much more space a packed inode takes if its parts kept their places than if it is assembled anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.places import Ranges

SPARSE = 2  # maximum size in multiples of what is used, although gaps take hardly any space once compressed
COLD_START = 64  # a pcluster that starts without history is about 1/64 larger
LOOSE = 50  # it may take 1/50 more than one without gaps, and in any case one pcluster more


class Weight(NamedTuple):
    """Estimated excess in bytes of blocks, and whether that is more than allowed."""

    excess: int
    is_loose: bool


def weigh(extents: Sequence[Extent], unused: Sequence[int], used: Ranges, pcluster: int, block_size: int) -> Weight:
    """Weigh the extents of a packed inode, each with its number of `unused` padding bytes; `pcluster` in bytes.

    The excess is the space that pclusters leave empty, plus the cost of having more of them than if they were full,
    since each starts without history.
    """
    empty = filled = count = stored = at = 0
    for extent, padding in zip(extents, unused, strict=False):  # inline data has none
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
