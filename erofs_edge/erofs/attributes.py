# SPDX-License-Identifier: Apache-2.0
"""Extended attributes as the writer lays them out (kernel: ``struct erofs_xattr_ibody_header``, ``_entry``).

An attribute of more than two inodes is stored once in the shared area and referred to by its offset; SELinux labels
make that pay off. Everything else is stored right after the inode. The name filter tells the kernel which names an
inode certainly does not have. Long prefixes, if the image has a table of them, save the beginning of long names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from erofs_edge.erofs.ondisk import (
    FINGERPRINT,
    XATTR_ENTRY,
    XATTR_FILTER_SEED,
    XATTR_HEADER,
    XATTR_LONG_PREFIX,
    XATTR_PREFIXES,
)
from erofs_edge.errors import SourceError, UsageError

NAME_MAX = 255  # bytes of an attribute's full name: XATTR_NAME_MAX of Linux
SHARED_MAX = 255  # shared attributes of one inode: an 8-bit count
ICOUNT_MAX = 0xFFFF
PREFIXES_MAX = 128
INFIX_MAX = 255
GAP_MAX = 4096  # bytes that may be left free before an entry to keep its old place
Attribute = tuple[bytes, bytes]  # full name, value


class AttributeRules:
    """tolerance: an attribute with more users than this is shared; filter: store the name filter; prefixes: long
    prefixes, each beginning with one of the short ones."""

    __slots__ = ("filter", "prefixes", "tolerance")

    def __init__(self, tolerance: int = 2, filter: bool = True, prefixes: tuple[bytes, ...] = ()) -> None:  # noqa: A002
        """Raises UsageError for prefixes that the format cannot hold."""
        self.tolerance, self.filter, self.prefixes = tolerance, filter, prefixes
        if len(self.prefixes) > PREFIXES_MAX or len(set(self.prefixes)) < len(self.prefixes):
            raise UsageError(f"more than {PREFIXES_MAX} long attribute prefixes, or one twice")
        for prefix in self.prefixes:
            base = _short_prefix(prefix)
            if base is None or b"\0" in prefix or len(prefix) - len(_text(base)) > INFIX_MAX:
                raise UsageError(
                    f"long attribute prefix {_shown(prefix)} cannot be stored in EROFS",
                    hint="one of user., trusted., security., and at most 255 bytes more",
                )

    def split(self, name: bytes) -> tuple[int, bytes]:
        """Return (name index, suffix), using the longest prefix. Raises SourceError for a name without a prefix."""
        if name == FINGERPRINT and name in self.prefixes:
            return XATTR_LONG_PREFIX | self.prefixes.index(name), b""
        short = split_name(name)
        fitting = [p for p in self.prefixes if name.startswith(p) and len(name) > len(p)]
        if not fitting:
            return short
        longest = max(fitting, key=len)
        return XATTR_LONG_PREFIX | self.prefixes.index(longest), name[len(longest) :]

    def prefix_table(self) -> bytes:
        """Encode a record per long prefix: 16 bits of length, index of the short one, the rest; padded to 4 bytes."""
        table = b""
        for prefix in self.prefixes:
            base = _short_prefix(prefix)
            assert base is not None  # noqa: S101 - checked in __init__
            infix = prefix[len(_text(base)) :]
            record = (1 + len(infix)).to_bytes(2, "little") + bytes([base]) + infix
            table += record + bytes(-len(record) % 4)
        return table


DEFAULT_RULES = AttributeRules()


def count_attributes(sets: Iterable[dict[bytes, bytes]]) -> Counter[Attribute]:
    """Count the inodes that have each attribute. Of an inode with more than it can share, only the first ones count."""
    return Counter(
        attribute
        for xattrs in sets
        for attribute in (xattrs.items() if len(xattrs) <= SHARED_MAX else sorted(xattrs.items())[:SHARED_MAX])
    )


def shared_area(
    uses: Counter[Attribute],
    offset: int,
    rules: AttributeRules = DEFAULT_RULES,
    old: Mapping[Attribute, int] = MappingProxyType({}),
) -> tuple[bytes, dict[Attribute, int]]:
    """Return the shared entries in the order of (name, value), and the id of each.

    `offset` is where the area starts, in bytes from xattr_blkaddr, a multiple of 4; an id is such an offset / 4.
    Entries with an `old` offset keep it where possible; the others follow them.
    """
    area = bytearray()
    ids = {}
    shared = sorted(a for a, users in uses.items() if users > rules.tolerance)
    for attribute in sorted((a for a in shared if a in old), key=lambda a: old[a]):
        gap = old[attribute] - offset - len(area)
        if 0 <= gap <= GAP_MAX and not old[attribute] % 4:
            area += bytes(gap)
            ids[attribute] = old[attribute] // 4
            area += entry(*attribute, rules)
    for attribute in shared:
        if attribute not in ids:
            ids[attribute] = (offset + len(area)) // 4
            area += entry(*attribute, rules)
    return bytes(area), ids


def inline_area(
    xattrs: dict[bytes, bytes], shared: dict[Attribute, int], where: str, rules: AttributeRules = DEFAULT_RULES
) -> bytes:
    """Return what follows the inode: header, shared ids, entries. Empty without attributes.

    Raises SourceError, naming `where`, for attributes that the format cannot hold.
    """
    if not xattrs:
        return b""
    attributes = sorted(xattrs.items())
    ids = [shared[a] for a in attributes if a in shared][:SHARED_MAX]
    chosen = set(ids)
    try:
        own = b"".join(entry(*a, rules) for a in attributes if shared.get(a, -1) not in chosen)
        bits = 0
        for name, _ in attributes:
            bits |= 1 << filter_bit(*((0, name) if name == FINGERPRINT else split_name(name)))
    except SourceError as error:
        raise SourceError(error.message, where=where) from None
    header = XATTR_HEADER.pack(~bits & 0xFFFFFFFF if rules.filter else 0, len(ids))
    area = header + b"".join(i.to_bytes(4, "little") for i in ids) + own
    if icount(area) > ICOUNT_MAX:
        raise SourceError("extended attributes of more than 256 KiB", where=where)
    return area


def icount(area: bytes) -> int:
    """Return i_xattr_icount for an area made by `inline_area`."""
    return (len(area) - XATTR_HEADER.size) // 4 + 1 if area else 0


def entry(name: bytes, value: bytes, rules: AttributeRules = DEFAULT_RULES) -> bytes:
    """Encode struct erofs_xattr_entry with name suffix and value, padded to 4 bytes."""
    index, suffix = rules.split(name)
    if len(value) > 0xFFFF:
        raise SourceError(f"attribute {_shown(name)} has {len(value)} bytes, more than 65535")
    raw = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return raw + bytes(-len(raw) % 4)


@cache
def split_name(name: bytes) -> tuple[int, bytes]:
    """Return (name index, suffix). Raises SourceError for a name that no prefix of the format matches."""
    for index, prefix in XATTR_PREFIXES.items():
        exact = not prefix.endswith(b".")
        if (name == prefix) if exact else (name.startswith(prefix) and len(name) > len(prefix)):
            suffix = name[len(prefix) :]
            if b"\0" in suffix:
                break
            if len(name) > NAME_MAX:
                raise SourceError(f"attribute name of {len(name)} bytes, which Linux cannot read: {_shown(name)}")
            return index, suffix
    raise SourceError(f"attribute name {_shown(name)} cannot be stored in EROFS")


@cache
def filter_bit(index: int, suffix: bytes) -> int:
    """Return the bit of h_name_filter that is cleared for a name: xxh32 of the suffix, seeded with its index."""
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


def _short_prefix(name: bytes) -> int | None:
    """Return the index of the short prefix with which a long one begins. ACLs are whole names and have none."""
    if name == FINGERPRINT:
        return 0
    return next((i for i, p in XATTR_PREFIXES.items() if p.endswith(b".") and name.startswith(p)), None)


def _text(index: int) -> bytes:
    """Return the short prefix with this index; the empty prefix if there is none."""
    return XATTR_PREFIXES.get(index, b"")


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
