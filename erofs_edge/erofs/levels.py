# SPDX-License-Identifier: Apache-2.0
"""Where LZ4HC is used at a faster level than requested, because that costs no block or next to nothing.

This determines the bytes of images: raise cut_rules.RULES with every change.
"""

from __future__ import annotations

import ctypes

# (minimum level requested, level tried before it, by how many thousandths its result may be longer); level 5 against 9:
# more than 30 for one file in a hundred, a block more for none of 672
TRIES = ((10, 7, 30), (8, 5, 30), (7, 5, 20))
LITERALS, NOTHING = 255, 8  # bytes that a length byte stands for; bytes that do not count
# if this occurs in the first bytes of a packed pcluster, level 8 takes 0.6 times as long as 9 for 0.2 % more
DEVICE_TREE, DEVICE_TREE_LEVEL, NEAR = b"\xd0\x0d\xfe\xed", 8, 64 << 10


def first_try(asked: int) -> tuple[int, int]:
    """Return (the level to try first, thousandths of its result that the requested one may save); (0, 0) for none."""
    return next(((level, gain) for least, level, gain in TRIES if asked >= least), (0, 0))


def saves_no_block(produced: int, gain: int, block_size: int) -> bool:
    """Whether `produced` bytes minus `gain` thousandths need as many blocks."""
    return produced * (1000 - gain) > 1000 * (-(-produced // block_size) - 1) * block_size


def found_nothing(consumed: int, produced: int) -> bool:
    """Whether LZ4's output exceeds its input by (almost) the lengths of literals: if one level finds next to nothing,
    no other level will gain anything either."""
    return consumed + consumed // LITERALS <= produced + NOTHING


def packed_level(address: int, left: int) -> int | None:
    """Return the level for what is at an address of the packed inode, of which `left` bytes can be read; None for the
    requested one."""
    return DEVICE_TREE_LEVEL if DEVICE_TREE in ctypes.string_at(address, min(left, NEAR)) else None
