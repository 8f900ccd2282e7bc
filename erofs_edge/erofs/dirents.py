# SPDX-License-Identifier: Apache-2.0
"""Parse directory blocks. Source: ``fs/erofs/dir.c`` and ``namei.c``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import lt
from typing import NamedTuple

from erofs_edge.erofs.backing import broken
from erofs_edge.erofs.ondisk import DIRENT, DIRENT_SIZE, NAME_MAX


class Dirent(NamedTuple):
    """A directory entry; `file_type` as in ondisk.FILE_TYPES (0 = unknown)."""

    name: bytes
    nid: int
    file_type: int


_dirent: Callable[[tuple[bytes, int, int]], Dirent] = partial(tuple.__new__, Dirent)  # Dirent(…) takes thrice as long


def parse_block(data: bytes, position: int) -> list[Dirent]:
    """Parse the entries of a directory block.

    data      the block, up to the directory's size if it is the last one
    position  byte address of the directory's inode, for messages

    Raises ErofsFormatError if an offset, a name or the order of names violates the rules.
    """
    if len(data) < DIRENT_SIZE:
        raise broken(f"directory block of {len(data)} bytes has no room for an entry", position)
    first = int.from_bytes(data[8:10], "little")
    if first % DIRENT_SIZE or not DIRENT_SIZE <= first < len(data):
        raise broken(f"first name at byte {first} of a directory block of {len(data)} bytes", position)
    nids, starts, types = zip(*DIRENT.iter_unpack(data[:first]), strict=True)
    last_end = data.find(0, max(starts[-1], first))
    ends = (*starts[1:], last_end if last_end >= 0 else len(data))
    names = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    together = data[first : ends[-1]]
    if (
        all(map(lt, starts, ends))
        and len(max(names, key=len)) <= NAME_MAX
        and b"/" not in together
        and b"\0" not in together
        and all(map(lt, names, names[1:]))
    ):
        return list(map(_dirent, zip(names, nids, types, strict=True)))
    raise broken(_defect(first, starts, ends, data), position)


def _defect(first: int, starts: Sequence[int], ends: Sequence[int], data: bytes) -> str:
    """Return what is wrong with the first wrong entry of a block that has one."""
    previous = b""
    for start, end in zip(starts, ends, strict=True):
        name = data[start:end]
        if not first <= start < end <= len(data) or end - start > NAME_MAX:
            return f"directory entry with a name from byte {start} to {end} of its block"
        if b"/" in name or b"\0" in name:
            return f"directory entry with the impossible name {name!r}"
        if name <= previous:
            break
        previous = name
    return f"directory entries out of order: {name!r} after {previous!r}"


def padding_is_zero(data: bytes, entries: list[Dirent]) -> bool:
    """Whether everything after the last name of a block is zero."""
    used = len(entries) * DIRENT_SIZE + sum(len(entry.name) for entry in entries)
    return data.count(0, used) == len(data) - used
