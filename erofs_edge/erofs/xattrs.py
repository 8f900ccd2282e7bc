# SPDX-License-Identifier: Apache-2.0
"""Read extended attributes: inline entries, shared entries, long name prefixes.

Source: ``fs/erofs/xattr.c`` (erofs_init_inode_xattrs, erofs_xattr_prefixes_init) and ``erofs_fs.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.attributes import xxh32
from erofs_edge.erofs.backing import METABOX, Backing, broken
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import ErofsFormatError

PREFIX_MAX = 256
_HEADER = ondisk.XATTR_HEADER.size
_ENTRY = ondisk.XATTR_ENTRY.size
_EMPTY_SUFFIX = (2, 3)  # the ACL indexes are whole names

Read = Callable[[int, int, str], bytes]


class XattrArea(NamedTuple):
    """The attributes of one inode.

    items       name → value; if a name occurs twice, the first one wins, as in the kernel
    shared      byte addresses and sizes of the shared entries that the inode uses
    duplicates  names that occur more than once
    filter      the name filter as stored
    """

    items: dict[bytes, bytes]
    shared: list[tuple[int, int]]
    duplicates: list[bytes]
    filter: int


def read_xattrs(backing: Backing, info: SuperInfo, inode: DiskInode, prefixes: Callable[[], list[bytes]]) -> XattrArea:
    """Return all attributes of an inode. `prefixes` is called if long prefixes are needed. Raises ErofsFormatError."""
    items: dict[bytes, bytes] = {}
    shared: list[tuple[int, int]] = []
    duplicates: list[bytes] = []
    if not inode.xattr_size:
        return XattrArea(items, shared, duplicates, 0)
    start = inode.offset + inode.header_size
    area = backing.read(start, inode.xattr_size, f"xattr area of inode {inode.nid}")
    name_filter, count = ondisk.XATTR_HEADER.unpack_from(area)
    position = _HEADER + 4 * count
    if position > len(area):
        raise broken(f"inode {inode.nid}: {count} shared xattrs do not fit in {len(area)} bytes", start)
    found = []
    ids = struct.unpack_from(f"<{count}I", area, _HEADER)
    while position < len(area):
        name, value, size = _entry(
            lambda at, length, _: area[at : at + length], position, len(area), prefixes, start + position
        )
        found.append((name, value))
        position += size
    base = info.raw.xattr_blkaddr << info.raw.blkszbits
    if info.metabox_nid and info.raw.feature_compat & ondisk.COMPAT_SHARED_EA_IN_METABOX:
        base += METABOX
    for number in ids:
        at = base + 4 * number
        name, value, size = _entry(backing.read, at, backing.end_of(at), prefixes, at)
        shared.append((at, size))
        found.append((name, value))
    for name, value in found:
        if name in items:
            duplicates.append(name)
        else:
            items[name] = value
    return XattrArea(items, shared, duplicates, name_filter)


def _entry(
    read: Read, position: int, end: int, prefixes: Callable[[], list[bytes]], where: int
) -> tuple[bytes, bytes, int]:
    """Return (name, value, bytes with padding) of the entry at `position`, which must end before `end`."""
    if position + _ENTRY > end:
        raise broken("xattr entry does not fit in its area", where)
    name_length, index, value_size = ondisk.XATTR_ENTRY.unpack(read(position, _ENTRY, "xattr entry"))
    size = _ENTRY + name_length + value_size
    if position + size > end:
        raise broken(f"xattr entry of {size} bytes does not fit in its area", where)
    suffix = read(position + _ENTRY, name_length, "xattr name")
    value = read(position + _ENTRY + name_length, value_size, "xattr value")
    if index & ondisk.XATTR_LONG_PREFIX:
        table = prefixes()
        number = index & ~ondisk.XATTR_LONG_PREFIX
        if number >= len(table):
            raise broken(f"xattr uses long prefix {number}, the image has {len(table)}", where)
        prefix = table[number]
    elif index not in ondisk.XATTR_PREFIXES:
        raise broken(f"xattr name index {index} is not defined", where)
    else:
        prefix = ondisk.XATTR_PREFIXES[index]
    if (index in _EMPTY_SUFFIX and suffix) or b"\0" in suffix:
        raise broken(f"xattr name {prefix + suffix!r} is not possible", where)
    return prefix + suffix, value, -(-size // 4) * 4


def read_prefixes(info: SuperInfo, read: Read) -> list[bytes]:
    """Return the long prefixes in the table at `xattr_prefix_start`; `read` reads the image or the packed inode.

    Raises ErofsFormatError.
    """
    table = []
    position = 4 * info.raw.xattr_prefix_start
    for number in range(info.raw.xattr_prefix_count):
        header = read(position, 2, "long xattr prefix")
        length = int.from_bytes(header, "little")
        if len(header) < 2 or not 1 <= length <= PREFIX_MAX:
            raise broken(f"long xattr prefix {number} has {length} bytes", position)
        record = read(position + 2, length, "long xattr prefix")
        if len(record) < length:
            raise ErofsFormatError(f"long xattr prefix {number} is cut off", where=f"offset {position:#x}")
        base = record[0]
        if base and base not in ondisk.XATTR_PREFIXES:
            raise broken(f"long xattr prefix {number} has the undefined base index {base}", position)
        table.append(ondisk.XATTR_PREFIXES.get(base, b"") + record[1:])
        position = (position + 2 + length + 3) & ~3
    return table


def prefix_table_size(table: list[bytes]) -> int:
    """Return the size in bytes of a table of long prefixes."""
    short = ondisk.XATTR_PREFIXES.values()
    sizes = (
        3 + len(prefix) - max((len(base) for base in short if prefix.startswith(base)), default=0) for prefix in table
    )
    return sum(-(-size // 4) * 4 for size in sizes)


def filter_bit_of(name: bytes) -> int:
    """Return the bit of the name filter that is clear in inodes with this attribute, given by its full name."""
    index, prefix = next((item for item in ondisk.XATTR_PREFIXES.items() if name.startswith(item[1])), (0, b""))
    return xxh32(name[len(prefix) :], ondisk.XATTR_FILTER_SEED + index) & 31
