# SPDX-License-Identifier: Apache-2.0
"""Directory blocks: dirents sorted by name bytes, then the names (kernel: ``fs/erofs/dir.c``, ``namei.c``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate, chain
from struct import Struct

from erofs_edge.erofs.ondisk import DIRENT, DIRENT_SIZE

Names = list[bytes]


def split_blocks(names: Iterable[bytes], block_size: int) -> list[Names]:
    """Names, with "." and "..", sorted and cut into blocks: a block ends where the next entry would not fit."""
    blocks: list[Names] = [[]]
    used = 0
    for name in sorted([*names, b".", b".."]):
        need = DIRENT_SIZE + len(name)
        if used + need > block_size:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    return blocks


def block_bytes(names: Sequence[bytes]) -> int:
    """Bytes used in a block by these names and their dirents."""
    return DIRENT_SIZE * len(names) + sum(map(len, names))


def encode_block(names: Sequence[bytes], nids: Iterable[int], types: Iterable[int]) -> bytes:
    """One block, not padded. `nids` and `types` (FT_ numbers) are of each name."""
    count = len(names)
    offsets = accumulate(map(len, names[:-1]), initial=DIRENT_SIZE * count)
    return b"".join([_dirents(count).pack(*chain.from_iterable(zip(nids, offsets, types, strict=True))), *names])


@cache
def _dirents(count: int) -> Struct:
    """So many of ondisk.DIRENT."""
    return Struct("<" + DIRENT.format.lstrip("<") * count)
