# SPDX-License-Identifier: Apache-2.0
"""Options of the writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from erofs_edge.codec.registry import dictionary_for, find_codec
from erofs_edge.erofs.attributes import AttributeRules
from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.ondisk import (
    ALGORITHM_NAMES,
    BLKSZBITS_MAX,
    BLKSZBITS_MIN,
    FINGERPRINT,
    LZ4_PCLUSTER_BLOCKS_MAX,
    PCLUSTER_MAX,
)
from erofs_edge.erofs.records import Record
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.cache import CompressionCache
    from erofs_edge.erofs.gate import Kernel
    from erofs_edge.erofs.meter import Meter
    from erofs_edge.erofs.profile import Use
    from erofs_edge.erofs.rules import CompressionRule
    from erofs_edge.threads import Threads

PACKED_FACTOR = 4  # times the pcluster size; makes the packed inode 0.4 % smaller than that of mkfs.erofs


class Ahead(Protocol):
    """The part of ahead.HeadStart that the writer uses: its thread pool, its worker processes (a crew.Crew), if any,
    and the result for a piece.Piece, if it has one."""

    @property
    def pool(self) -> Threads: ...

    @property
    def least(self) -> int:
        """Size in bytes of the smallest file that is started early."""
        ...

    @property
    def crew(self) -> Any: ...

    def has(self, piece: Any) -> bool: ...

    def take(self, piece: Any) -> Any: ...


class WriteOptions(Record):
    """How an image is written. `jobs`, `cache`, `ahead`, `meter` and `progress` never change the output.

    block_size    bytes, a power of two from 512 to 64K; kernels mount block sizes up to their page size
    compression   'none', 'lz4', 'lz4hc', 'zstd' (needs Linux 6.10), 'deflate' (6.6) or 'lzma' (5.16)
    level         compression level: lz4hc 1..12, default 7 (8 for kernels, recognized by content); zstd 1..22, default
                  3; deflate 1..12, default 6; lzma 0..9 and 100..109, default 6
    exact_level   lz4hc from level 7: use the level also where a faster one needs no more blocks, and for device trees
                  in the packed inode, which otherwise get 8; this takes longer
    dictionary    how far back matches may reach, in bytes, for zstd (at most 1 MiB) and lzma (at most 8 MiB); None:
                  what suits the pcluster size, as in mkfs.erofs
    rules         compression of files by path; the first rule that matches a file applies
    pcluster      bytes that a run of input is compressed into, a multiple of block_size, at most 1 MiB; None means one
                  block
    epoch         the image's own time in seconds since 1970; None: the tree's most frequent mtime
    times         'keep' the tree's mtimes; 'fixed': set all to `epoch`; 'clamp': set those after `epoch` to it
    uuid          16 bytes; None: derived from the image's content
    volume_name   at most 15 bytes
    all_root      set owner and group of everything to 0
    inline_tails  store the tail of a file next to its inode where it fits
    dedupe        equal files share their blocks, and files refer to compressed data of earlier files that has the same
                  bytes, at any offset; with compression this needs Linux 6.1
    ztailpacking  store the last compressed bytes of a file next to its inode if they are less than a block; needs Linux
                  5.17
    fragments     'tails': compress what does not fill a pcluster together, in one packed inode; 'all': do so with whole
                  files. Equal files and equal tails share their bytes. Needs Linux 6.1
    packed_pcluster  pcluster size of the packed inode; None: PACKED_FACTOR times `pcluster`, at most 1 MiB or 256
                  blocks
    inode_form    'auto', or a single form for all inodes; 'compact' fails if a value does not fit
    checksum      store the superblock's checksum
    wide          use the forms introduced with 48-bit addresses in Linux 6.15 even if no address needs them: compact
                  inodes keep the seconds of their times, and compressed files get whichever index is shortest
    full_index    use full indexes for compressed files: 8 bytes per block, readable without support for the compact
                  forms
    chunk_size    bytes, a power of two from block_size to 16 MiB: uncompressed files become chunk-based and equal
                  chunks are stored once; needs Linux 5.15
    chunk_indexes  use the longer form of chunk tables
    blob          write the data (with chunk_size: the chunks) to this file, to be mounted together with the image;
                  needs Linux 5.16
    bases         images to use as extra devices: what they contain is not stored again; needs Linux 5.16
    base_devices  the bases' own devices, in any order
    archives      tar files to use as extra devices: members are used in place if the tree's contents come from them
    baseline      an image that this one replaces: unchanged content keeps its place
    compact       with a baseline: leave no free blocks, whatever has to move
    profile       paths from the root, or profile.Use, in the order of first use: what they name and its metadata go to
                  the front
    xattr_tolerance  share attributes that more inodes than this have; negative: store none
    xattr_filter  store a filter of the attribute names that an inode does not have
    xattr_prefixes  long prefixes of attribute names, stored in a table; needs Linux 6.4
    fingerprints  store the sha256 of each file's content, so that Linux 7.0 shares the pages of equal files of several
                  images in memory; older kernels mount such images, too
    scanned       the tree comes from `directory.scan`: if the mtime of a file over 128 KiB differs at the end, the file
                  changed while it was being read, which raises SourceError
    kernel        refuse what this kernel cannot mount
    jobs          threads or processes that read and compress; None: depends on the processors; 1: one thread
    cache         compressed data of earlier builds
    ahead         files of the tree that are already being compressed, with the same options
    meter         measures the time spent in codecs
    progress      called with (done, total) in bytes of content
    """

    block_size: int = 4096
    compression: str = "lz4hc"
    level: int | None = None
    exact_level: bool = False
    pcluster: int | None = None
    dictionary: int | None = None
    rules: tuple[CompressionRule, ...] = ()
    epoch: int | None = None
    times: Literal["keep", "fixed", "clamp"] = "keep"
    uuid: bytes | None = None
    volume_name: bytes = b""
    all_root: bool = False
    inline_tails: bool = True
    dedupe: bool = False
    ztailpacking: bool = False
    fragments: Literal["none", "tails", "all"] = "none"
    packed_pcluster: int | None = None
    inode_form: Literal["auto", "compact", "extended"] = "auto"
    checksum: bool = True
    wide: bool = False
    full_index: bool = False
    chunk_size: int | None = None
    chunk_indexes: bool = False
    blob: Path | None = None
    bases: tuple[Path, ...] = ()
    base_devices: tuple[Path, ...] = ()
    archives: tuple[Path, ...] = ()
    baseline: Path | None = None
    compact: bool = False
    profile: tuple[Use | bytes, ...] = ()
    xattr_tolerance: int = 2
    xattr_filter: bool = True
    xattr_prefixes: tuple[bytes, ...] = ()
    fingerprints: bool = False
    scanned: bool = False
    kernel: Kernel | None = None
    jobs: int | None = None
    cache: CompressionCache | None = None
    ahead: Ahead | None = None
    meter: Meter | None = None
    progress: Callable[[int, int], None] | None = None

    def _check(self) -> None:
        """Raises UsageError for values that no image can have."""
        bits = self.block_size.bit_length() - 1
        if not BLKSZBITS_MIN <= bits <= BLKSZBITS_MAX or self.block_size != 1 << bits:
            raise UsageError(f"block size {self.block_size} is not a power of two from 512 to 65536")
        if self.compression != "none":
            dictionary_for(find_codec(self.compression, self.level)[0], self.dictionary, self.block_size)
        for rule in self.rules:
            rule.check(self.block_size)
        for size in (self.pcluster, self.packed_pcluster):
            if size is not None and (size % self.block_size or not self.block_size <= size <= PCLUSTER_MAX):
                raise UsageError(
                    f"pcluster size {size} is not a multiple of the block size {self.block_size} up to 1 MiB"
                )
        _check_packing(self)
        _check_lz4(self)
        if self.epoch is not None and not 0 <= self.epoch < 1 << 63:
            raise UsageError(f"epoch {self.epoch} is not a number of seconds since 1970")
        if self.times != "keep" and self.epoch is None:
            raise UsageError(f"{self.times} times need an epoch")
        if self.uuid is not None and len(self.uuid) != 16:
            raise UsageError("a UUID has 16 bytes")
        if len(self.volume_name) > 15 or b"\0" in self.volume_name:
            shown = self.volume_name.decode("utf-8", "backslashreplace")
            raise UsageError(f'volume name "{shown}" is longer than 15 bytes or has a NUL', hint="a shorter one")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError("jobs must be at least 1")
        _check_chunks(self)
        _check_baseline(self)
        if self.profile and self.fragments != "none":
            raise UsageError("a profile orders files, and fragments mix them", hint="use one of them")
        _ = self.attributes
        if self.kernel is not None:
            from erofs_edge.erofs.gate import check_kernel

            check_kernel(self.features, self.kernel)

    @property
    def has_layers(self) -> bool:
        """Whether the image may have extra devices."""
        return self.blob is not None or bool(self.bases or self.archives)

    @property
    def uses(self) -> tuple[Use, ...]:
        """The profile, with plain paths converted to `Use` of the whole file."""
        from erofs_edge.erofs.profile import Use

        return tuple(Use(one) if isinstance(one, bytes) else one for one in self.profile)

    @property
    def block_bits(self) -> int:
        return self.block_size.bit_length() - 1

    @property
    def pcluster_size(self) -> int:
        """`pcluster` in bytes, or its default."""
        return self.pcluster if self.pcluster is not None else self.block_size

    @property
    def packed_pcluster_size(self) -> int:
        """`packed_pcluster` in bytes, or its default."""
        if self.packed_pcluster is not None:
            return self.packed_pcluster
        most = min(PCLUSTER_MAX, LZ4_PCLUSTER_BLOCKS_MAX * self.block_size)
        return max(self.pcluster_size, min(PACKED_FACTOR * self.pcluster_size, most))

    @property
    def pcluster_largest(self) -> int:
        """Size in bytes of the largest pcluster that the image may have."""
        return max(self.pcluster_size, self.packed_pcluster_size if self.fragments != "none" else 0)

    @property
    def shares(self) -> bool:
        """Whether equal files may share their blocks."""
        return self.dedupe or self.fragments != "none"

    @property
    def big_pclusters(self) -> bool:
        """Whether pclusters may exceed one block, which needs Linux 5.13 and an incompatible feature bit."""
        return self.compression != "none" and self.pcluster_largest > self.block_size

    @property
    def attributes(self) -> AttributeRules:
        """How extended attributes are stored. Raises UsageError for prefixes that the format cannot hold."""
        own = (FINGERPRINT,) if self.fingerprints else ()
        return AttributeRules(self.xattr_tolerance, self.xattr_filter, (*self.xattr_prefixes, *own))

    @property
    def features(self) -> list[str]:
        """Names (keys of gate.FEATURES) of the features that the options imply, for any tree."""
        names = ["erofs"]
        codecs = [self.compression, *(rule.compression for rule in self.rules)]
        names += sorted({ALGORITHM_NAMES[find_codec(name)[0].algorithm] for name in codecs if name != "none"})
        if self.block_bits < 12:
            names.append("small_compressed_blocks" if self.compression != "none" else "small_blocks")
        if self.big_pclusters:
            names.append("big_pcluster")
        if self.chunk_size is not None:
            names.append("chunked_file")
        if self.has_layers:
            names.append("device_table")
        if self.xattr_prefixes or self.fingerprints:
            names.append("xattr_prefixes")
        if self.wide:
            names.append("48bit")
        if self.dedupe and self.compression != "none":
            names.append("dedupe")
        if self.ztailpacking:
            names.append("ztailpacking")
        if self.fragments != "none":
            names.append("fragments")
        return names

    @property
    def workers(self) -> int:
        """Number of threads. Usually more than processors, so that none idles while a thread waits for the GIL; with
        fast codecs, extra threads would only get in each other's way."""
        if self.jobs is not None:
            return self.jobs
        is_fast = self.compression in ("none", "lz4") and not self.rules
        return (os.cpu_count() or 1) + (0 if is_fast else 2)

    @property
    def processes(self) -> int:
        """Number of worker processes to use instead of threads if possible, at most one per processor; 1: none."""
        return min(self.workers, os.cpu_count() or 1)


def _check_chunks(options: WriteOptions) -> None:
    if options.chunk_size is None:
        if options.chunk_indexes:
            raise UsageError("chunk indexes need chunks", hint="give a chunk size: --chunksize")
        return
    size = options.chunk_size
    if size & (size - 1) or not options.block_size <= size <= PIECE:
        raise UsageError(f"chunk size {size} is not a power of two from the block size {options.block_size} to 16 MiB")
    if options.fragments != "none":
        raise UsageError("chunks and fragments exclude each other", hint="use one of --chunksize and -E fragments")


def _check_baseline(options: WriteOptions) -> None:
    if options.archives and options.block_size > 512:
        raise UsageError("members of archives start at multiples of 512 bytes", hint="use blocks of 512 bytes: -b 512")
    if options.base_devices and not options.bases:
        raise UsageError("devices of bases need a base", hint="add --base")
    if options.wide and options.baseline is not None:
        raise UsageError("48-bit forms cannot keep their places", hint="use one of --baseline and -E 48bit")
    if options.compact and options.baseline is None:
        raise UsageError("compact needs a baseline", hint="an image without one has no free blocks; or add --baseline")
    if options.baseline is None:
        return
    if options.has_layers:
        raise UsageError(
            "data on an extra device cannot keep its place", hint="leave out one of --baseline and the extra devices"
        )


def _check_lz4(options: WriteOptions) -> None:
    """Kernels refuse an image whose superblock announces larger ones, whatever the block size."""
    sizes = [rule.pcluster or options.pcluster_size for rule in options.rules if rule.compression in ("lz4", "lz4hc")]
    if options.compression in ("lz4", "lz4hc"):
        sizes.append(options.pcluster_largest)
    most = LZ4_PCLUSTER_BLOCKS_MAX * options.block_size
    if max(sizes, default=0) > most:
        raise UsageError(
            f"LZ4 has pclusters of at most {LZ4_PCLUSTER_BLOCKS_MAX} blocks, {most} bytes: kernels read no larger ones"
        )


def _check_packing(options: WriteOptions) -> None:
    if options.compression == "none" and (options.ztailpacking or options.fragments != "none"):
        name = "ztailpacking" if options.ztailpacking else "fragments"
        raise UsageError(f"{name} works on compressed files only", hint="choose a compression")
    if options.packed_pcluster is not None and options.fragments == "none":
        raise UsageError("a pcluster size of the packed inode needs fragments")
