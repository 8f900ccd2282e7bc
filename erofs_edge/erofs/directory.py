# SPDX-License-Identifier: Apache-2.0
"""Directory blocks: dirents sorted by name bytes, then the names (kernel: ``fs/erofs/dir.c``, ``namei.c``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def encode_block(names: Sequence[bytes], entries: Iterable[tuple[int, int]]) -> bytes:
    """One block, not padded. `entries` are the (nid, file type) of each name."""
    offset = DIRENT_SIZE * len(names)
    pack = DIRENT.pack
    out = []
    for name, (nid, kind) in zip(names, entries, strict=True):
        out.append(pack(nid, offset, kind))
        offset += len(name)
    return b"".join([*out, *names])
