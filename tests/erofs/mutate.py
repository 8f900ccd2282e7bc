# SPDX-License-Identifier: Apache-2.0
"""Structure-aware mutation: every field of every structure of a small image gets values that may do harm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import METABOX
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.read import Image

_SUPER = {
    "magic": (0, 4), "feature_compat": (8, 4), "blkszbits": (12, 1), "sb_extslots": (13, 1), "rootnid": (14, 2),
    "inos": (16, 8), "epoch": (24, 8), "fixed_nsec": (32, 4), "blocks": (36, 4), "meta_blkaddr": (40, 4),
    "xattr_blkaddr": (44, 4), "feature_incompat": (80, 4), "u1": (84, 2), "extra_devices": (86, 2),
    "devt_slotoff": (88, 2), "dirblkbits": (90, 1), "xattr_prefix_count": (91, 1), "xattr_prefix_start": (92, 4),
    "packed_nid": (96, 8), "xattr_filter_reserved": (104, 1), "rootnid_8b": (112, 8),
    "record_length": (128, 2), "lz4_distance": (130, 2), "lz4_blocks": (132, 2), "metabox_nid": (128, 8),
    "blocks_hi": (14, 2), "build_time": (108, 4), "record_more": (134, 4), "ishare_xattr_prefix_id": (105, 1),
}  # fmt: skip
_COMPACT = {
    "i_format": (0, 2), "i_xattr_icount": (2, 2), "i_mode": (4, 2), "i_nlink": (6, 2), "i_size": (8, 4),
    "i_mtime": (12, 4), "i_u": (16, 4), "i_ino": (20, 4), "i_uid": (24, 2),
}  # fmt: skip
_EXTENDED = {
    "i_format": (0, 2), "i_xattr_icount": (2, 2), "i_mode": (4, 2), "i_nb": (6, 2), "i_size": (8, 8), "i_u": (16, 4),
    "i_ino": (20, 4), "i_uid": (24, 4), "i_mtime": (32, 8), "i_mtime_nsec": (40, 4), "i_nlink": (44, 4),
}  # fmt: skip
_MAP_HEADER = {"h_fragmentoff": (0, 4), "h_idata": (2, 2), "h_advise": (4, 2), "h_algorithm": (6, 1), "h_bits": (7, 1)}


class Field(NamedTuple):
    """`size` bytes at byte `offset` of the image."""

    name: str
    offset: int
    size: int


def fields(image: Image) -> list[Field]:
    """Return every field of the superblock and of each inode, dirent, xattr area, map header, index and chunk table."""
    found = [Field(f"super.{name}", ondisk.SUPER_OFFSET + at, size) for name, (at, size) in _SUPER.items()]
    inodes = [inode for _, inode in image.walk()]
    info = image.superblock
    if info.raw.packed_nid:
        inodes.append(image.packed)
    if info.metabox_nid:
        inodes.append(image.metabox)
    for number in range(len(info.devices)):
        slot = info.raw.devt_slotoff * 128 + number * 128
        found += [Field(f"device {number}+{at}", slot + at, size) for at, size in ((64, 4), (68, 4), (72, 2), (74, 2))]
    if info.raw.xattr_prefix_count and info.raw.feature_compat & ondisk.COMPAT_PLAIN_XATTR_PFX:
        found += [Field(f"prefixes+{at}", 4 * info.raw.xattr_prefix_start + at, 1) for at in range(8)]
    for inode in inodes:
        layout = _EXTENDED if inode.extended else _COMPACT
        prefix = f"inode {inode.nid}"
        found += [Field(f"{prefix}.{name}", inode.offset + at, size) for name, (at, size) in layout.items()]
        area = inode.offset + inode.header_size
        if inode.xattr_size:
            found += [Field(f"{prefix}.xattr+{at}", area + at, 4) for at in range(0, inode.xattr_size, 4)]
            found.append(Field(f"{prefix}.h_shared_count", area + 4, 1))
        if inode.is_compressed:
            start = -(-inode.body // 8) * 8
            found += [Field(f"{prefix}.{name}", start + at, size) for name, (at, size) in _MAP_HEADER.items()]
            zmap = image.zmap(inode)
            step = 2 if zmap.is_compact else 4
            if zmap.record:
                found.append(Field(f"{prefix}.h_extents", start, 4))
            found += [Field(f"{prefix}.index+{at}", zmap.position + at, step) for at in range(0, zmap.index_size, step)]
        elif inode.layout == ondisk.LAYOUT_CHUNK_BASED:
            found += [Field(f"{prefix}.chunks+{at}", inode.body + at, 4) for at in range(0, 32, 4)]
            found += [Field(f"{prefix}.device+{at}", inode.body + at, 2) for at in range(2, 32, 8)]
        if inode.is_dir:
            found += _dirents(image, inode.nid)
        elif inode.layout == ondisk.LAYOUT_FLAT_INLINE:
            found.append(Field(f"{prefix}.inline", inode.body, 1))
    return [field for one in found if (field := _in_file(image, one)) is not None]


def _in_file(image: Image, field: Field) -> Field | None:
    """Return the field at its offset in the file; None if it is inside compressed metadata."""
    if field.offset < METABOX:
        return field if field.offset + field.size <= image.backing.end else None
    at = field.offset - METABOX
    for extent in image.extents(image.metabox, at):
        if extent.kind is Kind.RAW and at + field.size <= extent.start + extent.length:
            return field._replace(offset=extent.address + at - extent.start)
        return None
    return None


def _dirents(image: Image, nid: int) -> Iterator[Field]:
    inode = image.inode(nid)
    for extent in image.extents(inode):
        if extent.kind is not Kind.RAW:
            return
        entries = list(image.dirents(inode))[:12]
        for number in range(len(entries)):
            at = extent.address + number * ondisk.DIRENT_SIZE
            yield Field(f"dir {nid}[{number}].nid", at, 8)
            yield Field(f"dir {nid}[{number}].nameoff", at + 8, 2)
            yield Field(f"dir {nid}[{number}].type", at + 10, 1)
        names = extent.address + len(entries) * ondisk.DIRENT_SIZE
        yield Field(f"dir {nid}.names", names, 1)
        break


def value(rng: random.Random, old: int, size: int, nids: list[int]) -> int:
    """Return a value for a field of `size` bytes that differs from the old one."""
    top = (1 << 8 * size) - 1
    choices = [
        0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1, old + 1, old - 1, old ^ (1 << rng.randrange(8 * size)),
        old << 1, old >> 1, rng.randrange(top + 1), rng.randrange(256), 4095, 4096, 12, rng.choice(nids),
    ]  # fmt: skip
    while True:
        new = rng.choice(choices) & top
        if new != old:
            return new


def seal(data: bytes | bytearray) -> bytes:
    """Return the image with a correct superblock checksum, whatever its block size field says."""
    out = bytearray(data)
    bits = out[ondisk.SUPER_OFFSET + 12]
    if bits < 20:
        checksum = ondisk.super_checksum(bytes(out), bits)
        out[ondisk.SUPER_OFFSET + 4 : ondisk.SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
    return bytes(out)
