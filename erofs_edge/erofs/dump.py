# SPDX-License-Identifier: Apache-2.0
"""The contents of an image as plain values: superblock, inodes, extents, statistics. Wording as in dump.erofs."""

from __future__ import annotations

import stat
import uuid
from collections import Counter
from dataclasses import dataclass, field

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.gate import minimum_kernel, needs_text, pages_text, superblock_features, version_text
from erofs_edge.erofs.inode import LAYOUT_NAMES, DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.superblock import feature_names
from erofs_edge.names import fsdecode

SIZE_BUCKETS = 17
EXTENSIONS_SHOWN = 20
TYPE_NAMES = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "char dev",
    stat.S_IFBLK: "block dev",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "SOCK",
    stat.S_IFLNK: "symlink",
}


def superblock_fields(image: Image) -> dict[str, object]:
    """Return the superblock's fields by name. `checksum` is "none", "ok" or "wrong"; times are seconds since 1970."""
    info = image.superblock
    raw = info.raw
    compat, incompat = feature_names(info)
    has_checksum = bool(raw.feature_compat & ondisk.COMPAT_SB_CHKSUM)
    compressed = raw.feature_incompat & (ondisk.INCOMPAT_COMPR_CFGS | ondisk.INCOMPAT_LZ4_0PADDING)
    features = superblock_features(raw, ["big_pcluster"] if info.max_pcluster > info.block_size else [])
    algorithms = [name for bit, name in ondisk.ALGORITHM_NAMES.items() if info.algorithms >> bit & 1]
    return {
        "magic": f"{raw.magic:#010x}",
        "checksum": ("ok" if info.checksum_ok else "wrong") if has_checksum else "none",
        "block_size": info.block_size,
        "blocks": info.blocks,
        "size": info.size,
        "meta_blkaddr": raw.meta_blkaddr,
        "xattr_blkaddr": raw.xattr_blkaddr,
        "root_nid": image.root_nid,
        "packed_nid": raw.packed_nid,
        "metabox_nid": info.metabox_nid,
        "devices": [
            {"tag": fsdecode(device.tag), "blocks": device.blocks, "uniaddr": device.uniaddr} for device in info.devices
        ],
        "inodes": raw.inos,
        "epoch": info.epoch,
        "fixed_nsec": raw.fixed_nsec,
        "uuid": str(uuid.UUID(bytes=raw.uuid)),
        "volume_name": fsdecode(info.volume_name),
        "features_compat": compat,
        "features_incompat": incompat,
        "algorithms": algorithms if compressed else [],
        "max_pcluster": info.max_pcluster,
        "minimum_kernel": version_text(minimum_kernel(features)),
        "needs": needs_text(features) + ([f"pages of {info.block_size} bytes"] if pages_text(info.block_size) else []),
        "xattr_prefixes": [fsdecode(prefix) for prefix in image.xattr_prefixes],
    }


def inode_summary(image: Image, inode: DiskInode) -> dict[str, object]:
    """Return an inode's fields by name, limited to what reading the inode itself gives; mtime is in nanoseconds."""
    fields: dict[str, object] = {
        "nid": inode.nid,
        "type": TYPE_NAMES[stat.S_IFMT(inode.mode)],
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "links": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime_ns": inode.mtime_ns,
    }
    if stat.S_ISLNK(inode.mode):
        fields["target"] = fsdecode(image.readlink(inode))
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        fields["rdev"] = list(inode.rdev)
    return fields


def inode_fields(image: Image, inode: DiskInode) -> dict[str, object]:
    """Return the same plus how the inode is stored. `stored` is the size of its content in the image, in bytes."""
    return {
        **inode_summary(image, inode),
        "stored": sum(stored_size(extent) for extent in image.extents(inode)),
        "layout": inode.layout,
        "layout_name": LAYOUT_NAMES[inode.layout],
        "inode_size": inode.header_size,
        "xattr_size": inode.xattr_size,
        "offset": inode.offset,
        "xattrs": {fsdecode(name): value for name, value in image.xattrs(inode).items()},
    }


def stored_size(extent: Extent) -> int:
    """Return the bytes that an extent takes up in the image, uncompressed data without padding, as in dump.erofs."""
    if extent.kind in (Kind.HOLE, Kind.FRAGMENT):
        return 0
    return extent.size if extent.kind is Kind.ENCODED else extent.length


def extent_fields(extent: Extent) -> dict[str, object]:
    """Return an extent's fields by name: `start` and `length` in the file, `address` and `size` in bytes of the image
    (for fragments: of the packed inode)."""
    fields: dict[str, object] = {
        "start": extent.start,
        "length": extent.length,
        "kind": extent.kind.value,
        "address": extent.address,
        "size": extent.size,
    }
    if extent.kind is Kind.ENCODED:
        fields["algorithm"] = ondisk.ALGORITHM_NAMES[extent.algorithm]
    if extent.partial:
        fields["partial"] = True
    if extent.inline:
        fields["inline"] = True
    return fields


@dataclass(slots=True)
class Statistics:
    """Counts of files by type and of how regular files are stored; sizes in bytes.

    sizes, stored_sizes  regular files by size and by bytes in the image: bucket n holds [2**(n-1), 2**n) KiB, the first
                         one everything below 1 KiB, the last one everything from 32 MiB on (as in dump.erofs)
    extensions           regular files by name suffix, ".so" for "libc.so.6"; only the most frequent ones
    """

    types: dict[str, int] = field(default_factory=dict)
    compressed_files: int = 0
    uncompressed_files: int = 0
    layouts: dict[str, int] = field(default_factory=dict)
    extents: int = 0
    original_size: int = 0
    stored_size: int = 0
    packed_size: int = 0
    sizes: list[int] = field(default_factory=lambda: [0] * SIZE_BUCKETS)
    stored_sizes: list[int] = field(default_factory=lambda: [0] * SIZE_BUCKETS)
    extensions: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes of regular files in the image, including fragments, divided by their sizes; 1 if there are none."""
        return (self.stored_size + self.packed_size) / self.original_size if self.original_size else 1.0


def statistics(image: Image) -> Statistics:
    """Walk the whole image once. A file with several names counts once. Raises ErofsFormatError."""
    result = Statistics()
    seen: set[int] = set()
    extensions: Counter[str] = Counter()
    for path, inode in image.walk():
        if inode.nid in seen:
            continue
        seen.add(inode.nid)
        name = TYPE_NAMES[stat.S_IFMT(inode.mode)]
        result.types[name] = result.types.get(name, 0) + 1
        if not stat.S_ISREG(inode.mode):
            continue
        layout = LAYOUT_NAMES[inode.layout]
        result.layouts[layout] = result.layouts.get(layout, 0) + 1
        result.compressed_files += inode.is_compressed
        result.uncompressed_files += not inode.is_compressed
        result.original_size += inode.size
        stored = 0
        for extent in image.extents(inode):
            result.extents += 1
            stored += stored_size(extent)
        result.stored_size += stored
        result.sizes[_bucket(inode.size)] += 1
        result.stored_sizes[_bucket(stored)] += 1
        extensions[_extension(path)] += 1
    result.extensions = dict(sorted(extensions.items(), key=lambda item: (-item[1], item[0]))[:EXTENSIONS_SHOWN])
    if image.superblock.raw.packed_nid and image.superblock.incompat(ondisk.INCOMPAT_FRAGMENTS):
        result.packed_size = sum(stored_size(extent) for extent in image.extents(image.packed))
    return result


def _bucket(size: int) -> int:
    return min((size >> 10).bit_length(), SIZE_BUCKETS - 1)


def _extension(path: bytes) -> str:
    """Return the end of a name from its last dot, ignoring version numbers; "" if there is none."""
    name = path.rpartition(b"/")[2]
    parts = name.split(b".")[1:] if name[:1] != b"." else name[1:].split(b".")[1:]
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return "." + fsdecode(parts[-1]) if parts and parts[-1] and not parts[-1].isdigit() else ""
