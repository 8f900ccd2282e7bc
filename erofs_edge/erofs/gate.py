# SPDX-License-Identifier: Apache-2.0
"""Which kernel an image needs: format features and the first Linux that reads them.

Incompatible bits prevent a mount, and so do codecs that the kernel lacks and blocks larger than its pages. Compatible
bits never do. Sources: the history of the kernel's ``fs/erofs/erofs_fs.h`` and ``super.c``. The Android column is for
the common kernels (android12-5.10 and later), which have some features earlier and enable only LZ4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from erofs_edge.erofs import ondisk
from erofs_edge.errors import UsageError

Version = tuple[int, int]


class Feature(NamedTuple):
    """A feature. `option` is how it is requested, in mkfs.erofs's terms; `linux` and `android` are the first versions
    that mount it (None: no Android common kernel does); `stops` is False if older kernels still mount the image and
    merely lack the feature's benefit."""

    option: str
    linux: Version
    android: Version | None
    stops: bool = True


class Kernel(NamedTuple):
    """A kernel to build for."""

    version: Version
    android: bool = False

    def __str__(self) -> str:
        return f"{'Android ' if self.android else 'Linux '}{version_text(self.version)}"


FEATURES: dict[str, Feature] = {
    "erofs": Feature("EROFS", (5, 4), (5, 10)),
    "lz4": Feature("-z lz4", (5, 4), (5, 10)),
    "compr_cfgs": Feature("compression records", (5, 13), (5, 10)),
    "big_pcluster": Feature("-C above the block size", (5, 13), (5, 10)),
    "chunked_file": Feature("--chunksize", (5, 15), (5, 10)),
    "device_table": Feature("--blobdev", (5, 16), (5, 10)),
    "compr_head2": Feature("a second algorithm in one file", (5, 16), (5, 10)),
    "lzma": Feature("-z lzma", (5, 16), None),
    "ztailpacking": Feature("-E ztailpacking", (5, 17), (6, 1)),
    "fragments": Feature("-E fragments", (6, 1), (6, 1)),
    "dedupe": Feature("-E dedupe", (6, 1), (6, 1)),
    "xattr_prefixes": Feature("--xattr-prefix", (6, 4), (6, 6)),
    "small_blocks": Feature("-b below 4096", (6, 4), (6, 6)),
    "xattr_filter": Feature("the xattr name filter", (6, 6), (6, 6), stops=False),
    "deflate": Feature("-z deflate", (6, 6), None),
    "small_compressed_blocks": Feature("-z with -b below 4096", (6, 7), (6, 12)),
    "zstd": Feature("-z zstd", (6, 10), None),
    "48bit": Feature("-E 48bit", (6, 15), None),
    "compact_mtime": Feature("times of their own in compact inodes", (6, 15), None, stops=False),
    "metabox": Feature("-m", (6, 17), None),
    "compressed_directories": Feature("--zD", (6, 17), None),
    "plain_xattr_pfx": Feature("-E plain-xattr-prefixes", (6, 17), None),
    "ishare_xattrs": Feature("--xattr-inode-digest", (7, 0), None, stops=False),
}
"""name → feature, in order of age. Long prefixes in the image itself (plain_xattr_pfx) are readable since 6.4 if there
is no packed inode: the bit matters only with one, as decided in `superblock_features`."""

_INCOMPAT = {
    ondisk.INCOMPAT_LZ4_0PADDING: ("lz4",),
    ondisk.INCOMPAT_COMPR_CFGS: ("compr_cfgs", "big_pcluster"),
    ondisk.INCOMPAT_CHUNKED_FILE: ("chunked_file",),
    ondisk.INCOMPAT_DEVICE_TABLE: ("device_table", "compr_head2"),
    ondisk.INCOMPAT_ZTAILPACKING: ("ztailpacking",),
    ondisk.INCOMPAT_FRAGMENTS: ("fragments", "dedupe"),
    ondisk.INCOMPAT_XATTR_PREFIXES: ("xattr_prefixes",),
    ondisk.INCOMPAT_48BIT: ("48bit",),
    ondisk.INCOMPAT_METABOX: ("metabox",),
}
_SMALL_BLOCKS = 12  # blkszbits below which a block is smaller than any kernel's page


class Need(NamedTuple):
    """A feature that an image has, and the first Linux that mounts it."""

    feature: str
    option: str
    linux: Version
    android: Version | None
    stops: bool


def superblock_features(raw: ondisk.Superblock, facts: Iterable[str] = ()) -> list[str]:
    """Return the names of an image's features, in the order of FEATURES. Bits with two meanings count as the first one
    unless `facts` (names known from elsewhere) say otherwise; both need the same kernel."""
    names = {"erofs", *facts}
    for bit, both in _INCOMPAT.items():
        if raw.feature_incompat & bit and not names & set(both):
            names.add(both[0])
    compressed = bool(raw.feature_incompat & (ondisk.INCOMPAT_LZ4_0PADDING | ondisk.INCOMPAT_COMPR_CFGS))
    if raw.feature_incompat & ondisk.INCOMPAT_COMPR_CFGS:
        names |= {name for number, name in ondisk.ALGORITHM_NAMES.items() if raw.u1 >> number & 1}
        if not raw.u1 & 1 << ondisk.ALGORITHM_LZ4:
            names.discard("lz4")
    if raw.blkszbits < _SMALL_BLOCKS:
        names.add("small_compressed_blocks" if compressed else "small_blocks")
    if raw.feature_compat & ondisk.COMPAT_XATTR_FILTER:
        names.add("xattr_filter")
    if raw.feature_compat & ondisk.COMPAT_PLAIN_XATTR_PFX and raw.packed_nid:
        names.add("plain_xattr_pfx")
    if raw.feature_compat & ondisk.COMPAT_ISHARE_XATTRS:
        names.add("ishare_xattrs")
    return [name for name in FEATURES if name in names]


def required_kernel(features: Iterable[str]) -> list[Need]:
    """Return what each feature needs, newest first. Raises KeyError for a name that is not in FEATURES."""
    needs = [Need(name, *FEATURES[name]) for name in features]
    return sorted(needs, key=lambda need: (not need.stops, tuple(-n for n in need.linux), need.feature))


def minimum_kernel(features: Iterable[str]) -> Version:
    """Return the first Linux that mounts an image with all of these features."""
    return max((FEATURES[name].linux for name in features if FEATURES[name].stops), default=FEATURES["erofs"].linux)


def check_kernel(features: Iterable[str], kernel: Kernel | None) -> None:
    """Raises UsageError, naming each option and the version it needs, if `kernel` cannot mount all of them."""
    if kernel is None:
        return
    wrong = []
    for need in required_kernel(features):
        first = need.android if kernel.android else need.linux
        if need.stops and (first is None or first > kernel.version):
            wrong.append(f"{need.option} needs {version_text(first)}" if first else f"{need.option} is in none of them")
    if wrong:
        raise UsageError(
            f"{kernel} cannot mount this image: {', '.join(wrong)}",
            hint="leave these options out, or build for a newer kernel",
        )


def parse_kernel(text: str) -> Kernel:
    """Parse '6.1', '6.12.57-1', '1:6.12.57+deb13-arm64' (package versions), 'android13-5.15', '5.10.218-android12-9'.

    Raises UsageError.
    """
    match = re.fullmatch(r"(?:\d+:)?(?:linux-)?(?:android\d+-)?(\d+)\.(\d+)(?:[.+~_-].*)?", text)
    if not match:
        raise UsageError(f"{text!r} is not a Linux version", hint="for example 5.15, or android13-5.15")
    return Kernel((int(match[1]), int(match[2])), "android" in text)


def needs_text(features: Iterable[str]) -> list[str]:
    """Return 'big_pcluster (5.13)' for each feature, newest first; those that do not prevent a mount are marked."""
    return [
        f"{need.feature} ({version_text(need.linux)}{'' if need.stops else ', optional'})"
        for need in required_kernel(features)
    ]


def version_text(version: Version) -> str:
    """Format (6, 1) as '6.1'."""
    return f"{version[0]}.{version[1]}"


def pages_text(block_size: int) -> str:
    """Return ' with pages of 16384 bytes or more' if the usual 4 KiB pages are too small for the blocks, else ''."""
    return f" with pages of {block_size} bytes or more" if block_size > 1 << _SMALL_BLOCKS else ""
