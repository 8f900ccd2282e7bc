# SPDX-License-Identifier: Apache-2.0
"""Parse directory blocks. Source: ``fs/erofs/dir.c`` and ``namei.c``."""

from __future__ import annotations

from typing import NamedTuple

from erofs_edge.erofs.backing import broken
from erofs_edge.erofs.ondisk import DIRENT, DIRENT_SIZE, NAME_MAX


class Dirent(NamedTuple):
    """A directory entry; `file_type` as in ondisk.FILE_TYPES (0 = unknown)."""

    name: bytes
    nid: int
    file_type: int


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
    raw = list(DIRENT.iter_unpack(data[:first]))
    ends = [start for _, start, _ in raw[1:]]
    last_end = data.find(0, max(raw[-1][1], first))
    ends.append(last_end if last_end >= 0 else len(data))
    entries = []
    previous = b""
    for (nid, start, file_type), end in zip(raw, ends, strict=True):
        if not first <= start < end <= len(data) or end - start > NAME_MAX:
            raise broken(f"directory entry with a name from byte {start} to {end} of its block", position)
        name = data[start:end]
        if b"/" in name or b"\0" in name:
            raise broken(f"directory entry with the impossible name {name!r}", position)
        if name <= previous:
            raise broken(f"directory entries out of order: {name!r} after {previous!r}", position)
        previous = name
        entries.append(Dirent(name, nid, file_type))
    return entries


def padding_is_zero(data: bytes, entries: list[Dirent]) -> bool:
    """Whether everything after the last name of a block is zero."""
    used = len(entries) * DIRENT_SIZE + sum(len(entry.name) for entry in entries)
    return data.count(0, used) == len(data) - used
