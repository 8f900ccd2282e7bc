# SPDX-License-Identifier: Apache-2.0
"""Directory blocks: dirents sorted by name bytes, then the names (kernel: ``fs/erofs/dir.c``, ``namei.c``)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol

from erofs_edge.erofs.ondisk import DIRENT_SIZE

Names = list[bytes]


class Numbered(Protocol):
    """What a directory entry refers to."""

    nid: int


def split_blocks(names: Iterable[bytes], block_size: int) -> list[Names]:
    """Sort names, with "." and "..", and split them into blocks. A block ends where the next entry would not fit."""
    every = sorted([*names, b".", b".."])
    if block_bytes(every) <= block_size:  # the usual case
        return [every]
    blocks: list[Names] = [[]]
    used = 0
    for name in every:
        need = DIRENT_SIZE + len(name)
        if used + need > block_size:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    return blocks


def block_bytes(names: Sequence[bytes]) -> int:
    """Return the bytes used in a block by these names and their dirents."""
    return DIRENT_SIZE * len(names) + sum(map(len, names))


class Entries:
    """A directory block that is complete except for the inode numbers of its entries."""

    __slots__ = ("_block", "_targets")

    def __init__(self, names: Sequence[bytes], targets: Sequence[Numbered], types: bytes) -> None:
        """`targets` and `types` (FT_ numbers) are those of each name."""
        dirents = DIRENT_SIZE * len(names)
        self._targets = targets
        self._block = bytearray(dirents)
        offsets = list(accumulate(map(len, names), initial=dirents))
        # ondisk.DIRENT: 8 bytes of nid, 2 of offset, the type, an unused byte
        memoryview(self._block).cast("H")[4::6] = _little("H", offsets[:-1])
        self._block[10::DIRENT_SIZE] = types
        self._block += b"".join(names)

    def block(self) -> bytearray:
        """Return the block, unpadded. All targets must have their nids by now."""
        dirents = memoryview(self._block)[: DIRENT_SIZE * len(self._targets)].cast("I")
        nids = [target.nid for target in self._targets]
        try:
            dirents[::3] = _little("I", nids)
        except OverflowError:
            dirents[::3] = _little("I", [nid & 0xFFFFFFFF for nid in nids])
            dirents[1::3] = _little("I", [nid >> 32 for nid in nids])
        return self._block


def _little(kind: str, values: list[int]) -> array[int]:
    """Convert the values to their on-disk byte order."""
    numbers = array(kind, values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
