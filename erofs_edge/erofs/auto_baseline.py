# SPDX-License-Identifier: Apache-2.0
"""`-z auto` with a baseline: the options that keep most of it, derived from the baseline itself.

For an unchanged file, the same options give the same blocks and any other options give none of them. The image states
its codec, its pcluster sizes and how it was packed. The level shows only in the output, so a few of the baseline's own
pclusters are compressed again at every level until one reproduces them all.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from erofs_edge.codec.lz4 import address_of
from erofs_edge.codec.registry import CODECS, open_compressor
from erofs_edge.codec.search import SearchedOutput
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.codings import choose_codings
from erofs_edge.erofs.cut_rules import CutRules
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.plan import Plan
from erofs_edge.erofs.read import Image
from erofs_edge.errors import UsageError

PROBES = 24  # pclusters to compress again
START = 1 << 20  # bytes of a file that must suffice for its first pcluster; otherwise it is not used as a probe
NAMES = {0: ("lz4", "lz4hc"), 2: ("deflate",), 3: ("zstd",)}
"""algorithm → compressions that produce it. lzma is missing here, as in -z auto without a baseline."""


@dataclass(frozen=True, slots=True)
class Found:
    """A compression that may be the baseline's: how many of the probes it reproduces."""

    compression: str
    level: int | None
    same: int
    probes: int


@dataclass(frozen=True, slots=True)
class _Probe:
    """Bytes of a file, and the pcluster made from the first `length` of them."""

    content: bytes
    length: int
    stored: bytes


def as_baseline(options: WriteOptions) -> tuple[WriteOptions, list[Found]]:
    """Return the options with the baseline's own compression, pclusters and packing, and what was tried, best first.

    The pcluster size is kept if the options specify one. Raises UsageError if the baseline is not compressed in one
    way, or in none of ours, or if the options' kernel cannot mount the result; ErofsFormatError if the baseline is not
    an image.
    """
    assert options.baseline is not None  # noqa: S101 - checked by the caller
    with Image(options.baseline) as image:
        files = [inode for _, inode in _distinct(image) if inode.size]
        inodes = [inode for inode in files if inode.is_compressed]
        if image.superblock.raw.packed_nid and image.superblock.incompat(ondisk.INCOMPAT_FRAGMENTS):
            packed = [extent for extent in image.extents(image.packed) if _is_own(extent)]
        else:
            packed = []
        own = [(inode, extent) for inode in inodes if _is_own(extent := next(image.extents(inode)))]
        starts = own or [(image.packed, extent) for extent in packed]
        algorithms = {extent.algorithm for _, extent in starts}
        if not starts:
            raise _unknown(options.baseline, "is not compressed")
        if len(algorithms) > 1 or not algorithms <= NAMES.keys():
            raise _unknown(options.baseline, "is compressed in several ways, or with lzma")
        form = _form(image, own, packed, options)
        form["dedupe"] |= not packed and _shares(files)
        size = form["pcluster"] if own else form["packed_pcluster"]
        probes = list(islice(_probes(image, starts, size), PROBES))
    if not probes:
        raise _unknown(options.baseline, "has too little in it")
    names = NAMES[algorithms.pop()]
    base = options.replaced(baseline=None, compression=names[0], level=None, dictionary=None, **form)
    found = []
    for name, level in chain.from_iterable(_levels(name) for name in names):
        rules = choose_codings(Plan([], 0, 0, Counter()), base.replaced(compression=name, level=level)).default
        assert rules is not None  # noqa: S101 - it is a compression
        same = _count_same(probes, rules._replace(pcluster=size))
        found.append(Found(name, level, same, len(probes)))
        if same == len(probes):
            break
    best = max(found, key=lambda one: one.same)
    if 2 * best.same < len(probes):
        raise _unknown(options.baseline, "was made by another compressor, or with rules of its own")
    chosen = options.replaced(compression=best.compression, level=best.level, dictionary=None, **form)
    return chosen, sorted(found, key=lambda one: -one.same)


def _unknown(path: Path, why: str) -> UsageError:
    return UsageError(
        f"-z auto cannot tell how the baseline was compressed: it {why}",
        where=str(path),
        hint="give the -z, -C and -E that the baseline was built with",
    )


def _levels(name: str) -> Iterator[tuple[str, int | None]]:
    """Yield the default level, then all others, starting with the fastest."""
    codec = CODECS[name]
    yield name, None if codec.kinds else codec.default_level
    for level in range(codec.level_min, codec.level_max + 1) if codec.level_max else ():
        if codec.kinds or level != codec.default_level:
            yield name, level


def _distinct(image: Image) -> Iterator[tuple[bytes, DiskInode]]:
    """Yield regular files, hard links once, in an order unrelated to their content."""
    seen: dict[int, tuple[bytes, DiskInode]] = {}
    for path, inode in image.walk():
        if stat.S_ISREG(inode.mode):
            seen.setdefault(inode.nid, (path, inode))
    yield from sorted(seen.values(), key=lambda one: hashlib.sha256(one[0]).digest())


def _form(
    image: Image, own: list[tuple[DiskInode, Extent]], packed: list[Extent], options: WriteOptions
) -> dict[str, Any]:
    """Return pcluster, fragments, packed_pcluster, dedupe and ztailpacking, as fields of WriteOptions. `own` are the
    files that begin with their own pcluster, `packed` the extents of the packed inode."""
    info = image.superblock
    sizes = [extent.size for _, extent in own] or [extent.size for extent in packed]
    # fragments and shared pclusters use the same bit; a file that refers to pclusters of others has a full index
    shared = any(inode.layout == ondisk.LAYOUT_COMPRESSED_FULL for inode, _ in own)
    return {
        "pcluster": options.pcluster or max(sizes),
        "fragments": ("tails" if own else "all") if packed else "none",
        "packed_pcluster": max((extent.size for extent in packed), default=None),
        "dedupe": options.dedupe or shared or (info.incompat(ondisk.INCOMPAT_DEDUPE) and not packed),
        "ztailpacking": options.ztailpacking or info.incompat(ondisk.INCOMPAT_ZTAILPACKING),
    }


def _shares(files: list[DiskInode]) -> bool:
    """Whether uncompressed files share their blocks, which no feature bit shows."""
    blocks = [inode.block for inode in files if inode.layout == ondisk.LAYOUT_FLAT_PLAIN]
    return len(set(blocks)) < len(blocks)


def _is_own(extent: Extent) -> bool:
    """Whether this is a compressed extent with its own blocks."""
    return extent.kind is Kind.ENCODED and not extent.inline


def _probes(image: Image, starts: list[tuple[DiskInode, Extent]], size: int) -> Iterator[_Probe]:
    """Yield probes from pclusters that are full and end before the bytes tried here do."""
    for inode, extent in starts:
        if extent.size == size and not extent.partial:
            start = image.read(inode, extent.start, min(START, inode.size - extent.start))
            if extent.length < len(start):
                yield _Probe(start, extent.length, image.backing.read(extent.address, extent.size, "pcluster"))


def _count_same(probes: list[_Probe], rules: CutRules) -> int:
    same = 0
    for probe in probes:
        level = rules.codec.level_for(probe.content) if rules.by_kind else rules.level
        one = open_compressor(rules.codec, level, rules.pcluster, rules.block_size, rules.dictionary)
        if isinstance(one, SearchedOutput):  # this is what that much input gives, however it is found
            consumed, produced = one.fill(address_of(probe.content), probe.length, guess=probe.length)
        else:
            consumed, produced = one.fill(address_of(probe.content), len(probe.content))
        if consumed == probe.length and 0 <= rules.pcluster - produced <= rules.block_size:
            same += one.padded(produced, rules.pcluster) == probe.stored
    return same
