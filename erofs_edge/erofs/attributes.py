# SPDX-License-Identifier: Apache-2.0
"""Extended attributes as the writer lays them out (kernel: ``struct erofs_xattr_ibody_header``, ``_entry``).

An attribute that more than two inodes carry is stored once in the shared area and referred to by its offset; SELinux
labels are what makes that pay. Everything else stands right after the inode. The name filter tells the kernel which
names an inode certainly lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

from erofs_edge.erofs.ondisk import XATTR_ENTRY, XATTR_FILTER_SEED, XATTR_HEADER, XATTR_PREFIXES
from erofs_edge.errors import SourceError

SHARED_ABOVE = 2  # users of an attribute from which on it is shared, as mkfs.erofs -x2
SHARED_MAX = 255  # shared attributes of one inode: an 8-bit count
ICOUNT_MAX = 0xFFFF
Attribute = tuple[bytes, bytes]  # full name, value


def count_attributes(sets: Iterable[dict[bytes, bytes]]) -> Counter[Attribute]:
    """How many inodes carry each attribute."""
    return Counter(attribute for xattrs in sets for attribute in xattrs.items())


def shared_area(uses: Counter[Attribute], offset: int) -> tuple[bytes, dict[Attribute, int]]:
    """The shared entries in the order of (name, value), and the id of each.

    `offset` is where the area starts, in bytes from xattr_blkaddr, a multiple of 4; an id is such an offset / 4.
    """
    area = bytearray()
    ids = {}
    for attribute in sorted(a for a, users in uses.items() if users > SHARED_ABOVE):
        ids[attribute] = (offset + len(area)) // 4
        area += entry(*attribute)
    return bytes(area), ids


def inline_area(xattrs: dict[bytes, bytes], shared: dict[Attribute, int], where: str) -> bytes:
    """What follows the inode: header, shared ids, entries; empty without attributes.

    Raises SourceError, naming `where`, for attributes that the format cannot hold.
    """
    if not xattrs:
        return b""
    attributes = sorted(xattrs.items())
    ids = [shared[a] for a in attributes if a in shared][:SHARED_MAX]
    chosen = set(ids)
    try:
        own = b"".join(entry(*a) for a in attributes if shared.get(a, -1) not in chosen)
        bits = 0
        for name, _ in attributes:
            bits |= 1 << filter_bit(*split_name(name))
    except SourceError as error:
        raise SourceError(error.message, where=where) from None
    header = XATTR_HEADER.pack(~bits & 0xFFFFFFFF, len(ids))
    area = header + b"".join(i.to_bytes(4, "little") for i in ids) + own
    if icount(area) > ICOUNT_MAX:
        raise SourceError("extended attributes of more than 256 KiB", where=where)
    return area


def icount(area: bytes) -> int:
    """i_xattr_icount for an area as `inline_area` makes it."""
    return (len(area) - XATTR_HEADER.size) // 4 + 1 if area else 0


def entry(name: bytes, value: bytes) -> bytes:
    """struct erofs_xattr_entry with name suffix and value, padded to 4 bytes."""
    index, suffix = split_name(name)
    if len(value) > 0xFFFF:
        raise SourceError(f"attribute {_shown(name)} has {len(value)} bytes, more than 65535")
    raw = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return raw + bytes(-len(raw) % 4)


@cache
def split_name(name: bytes) -> tuple[int, bytes]:
    """(name index, suffix). Raises SourceError for a name that the format has no prefix for."""
    for index, prefix in XATTR_PREFIXES.items():
        exact = not prefix.endswith(b".")
        if (name == prefix) if exact else (name.startswith(prefix) and len(name) > len(prefix)):
            suffix = name[len(prefix) :]
            if len(suffix) > 255 or b"\0" in suffix:
                break
            return index, suffix
    raise SourceError(f"attribute name {_shown(name)} cannot be stored in EROFS")


@cache
def filter_bit(index: int, suffix: bytes) -> int:
    """The bit of h_name_filter that is cleared for a name: xxh32 of the suffix, seeded with its index."""
    return xxh32(suffix, XATTR_FILTER_SEED + index) & 31


def xxh32(data: bytes, seed: int) -> int:
    """xxHash, 32 bits (the algorithm's own specification)."""
    p1, p2, p3, p4, p5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
    mask = 0xFFFFFFFF

    def rotate(value: int, bits: int) -> int:
        return (value << bits | (value & mask) >> (32 - bits)) & mask

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 4], "little")

    at, size = 0, len(data)
    if size >= 16:
        lanes = [(seed + p1 + p2) & mask, (seed + p2) & mask, seed & mask, (seed - p1) & mask]
        while at + 16 <= size:
            for i in range(4):
                lanes[i] = rotate((lanes[i] + word(at + 4 * i) * p2) & mask, 13) * p1 & mask
            at += 16
        state = sum(rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
    else:
        state = (seed + p5) & mask
    state = (state + size) & mask
    while at + 4 <= size:
        state = rotate((state + word(at) * p3) & mask, 17) * p4 & mask
        at += 4
    for byte in data[at:]:
        state = rotate((state + byte * p5) & mask, 11) * p1 & mask
    state = (state ^ state >> 15) * p2 & mask
    state = (state ^ state >> 13) * p3 & mask
    return state ^ state >> 16


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
