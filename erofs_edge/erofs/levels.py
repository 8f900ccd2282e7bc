# SPDX-License-Identifier: Apache-2.0
"""Where LZ4HC is used at a faster level than was asked for, because that costs no block, or next to nothing.

What these say decides the bytes of images: raise cut_rules.RULES with a change.
"""

from __future__ import annotations

import ctypes

# (least level asked for, level that is tried before it, by how many thousandths its result may be too long); level 5
# against 9: more than 30 for one of a hundred files, a block for none of 672
TRIES = ((10, 7, 30), (8, 5, 30), (7, 5, 20))
LITERALS, NOTHING = 255, 8  # bytes that a byte tells of; bytes that are as good as none
# where this begins in the first bytes of a packed pcluster, level 8 takes 0.6 times as long as 9 for 0.2 % more
DEVICE_TREE, DEVICE_TREE_LEVEL, NEAR = b"\xd0\x0d\xfe\xed", 8, 64 << 10


def first_try(asked: int) -> tuple[int, int]:
    """The level that is tried first, and the thousandths of its result that the other one may save; (0, 0): none is."""
    return next(((level, gain) for least, level, gain in TRIES if asked >= least), (0, 0))


def saves_no_block(produced: int, gain: int, block_size: int) -> bool:
    """Whether `produced` bytes less `gain` thousandths need as many blocks."""
    return produced * (1000 - gain) > 1000 * (-(-produced // block_size) - 1) * block_size


def found_nothing(consumed: int, produced: int) -> bool:
    """Whether LZ4's output is longer than its input by the lengths of literals, or almost: of what one level finds
    next to nothing in, none makes anything."""
    return consumed + consumed // LITERALS <= produced + NOTHING


def packed_level(address: int, left: int) -> int | None:
    """The level for what stands at an address of the packed inode, of which `left` bytes can be read; None: that which
    was asked for."""
    return DEVICE_TREE_LEVEL if DEVICE_TREE in ctypes.string_at(address, min(left, NEAR)) else None
