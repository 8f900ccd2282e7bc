# SPDX-License-Identifier: Apache-2.0
"""What the writer can be told."""

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

PACKED_FACTOR = 4  # of the pcluster size: what makes the packed inode smaller than mkfs.erofs's by 0.4 %


class Ahead(Protocol):
    """What the writer uses of an ahead.HeadStart: its threads, its processes, a crew.Crew, if it has some, and what
    became of a piece.Piece, if it has that."""

    @property
    def pool(self) -> Threads: ...

    @property
    def least(self) -> int:
        """Bytes of the smallest file that is started."""
        ...

    @property
    def crew(self) -> Any: ...

    def has(self, piece: Any) -> bool: ...

    def take(self, piece: Any) -> Any: ...


class WriteOptions(Record):
    """How an image is written. `jobs`, `cache`, `ahead`, `meter` and `progress` never change a byte.

    block_size    bytes, a power of two from 512 to 64K; kernels read those up to their page size
    compression   'none', 'lz4', 'lz4hc', 'zstd', 'deflate' or 'lzma'; needs Linux 6.10, 6.6 and 5.16 from zstd on
    level         lz4hc: 1..12, None means 7 (8 for kernels, told by content); zstd 1..22, 3; deflate 1..12, 6;
                  lzma 0..9 and 100..109, 6
    exact_level   lz4hc from 7 on: the level is used also where a faster one needs no more blocks, and for device trees
                  in the packed inode, which get 8 else; that takes longer
    dictionary    bytes that matches may reach back, for zstd (at most 1 MiB) and lzma (at most 8 MiB); None: what
                  suits the pcluster size, as mkfs.erofs has it
    rules         how files are compressed that match a path; the first that matches wins
    pcluster      bytes that a run of input is compressed into, a multiple of block_size, at most 1 MiB;
                  None means one block
    epoch         seconds since 1970 stored as the image's own time; None: the tree's most frequent mtime
    times         'keep' the tree's mtimes, 'fixed': all become `epoch`, 'clamp': those after `epoch` do
    uuid          16 bytes; None: derived from the image's content
    volume_name   at most 15 bytes
    all_root      owner and group of everything become 0
    inline_tails  keep the rest of a file beside its inode where it fits
    dedupe        equal files share their blocks, and files refer to compressed data of earlier ones where they have the
                  same bytes, at any offset; where they are compressed that needs Linux 6.1
    ztailpacking  the last compressed bytes of a file stand beside its inode where they are less than a block;
                  needs Linux 5.17
    fragments     'tails': what does not fill a pcluster is compressed together, in one packed inode; 'all': every file
                  is. Equal files and equal tails share their bytes. Needs Linux 6.1
    packed_pcluster  as `pcluster`, for the packed inode; None: PACKED_FACTOR times that, at most 1 MiB or 256 blocks
    inode_form    'auto', or one form of inode for everything; 'compact' fails where it cannot hold a value
    checksum      store the superblock's checksum
    wide          the forms that came with 48-bit addresses, in Linux 6.15, also where no address needs them: compact
                  inodes keep the seconds of their times, and compressed files whatever index is the shortest
    full_index    compressed files have full indexes: 8 bytes a block, readable without knowing the compact forms
    chunk_size    bytes, a power of two from block_size to 16 MiB: files that are not compressed become chunk-based,
                  equal chunks are stored once; needs Linux 5.15
    chunk_indexes  the longer form of their tables
    blob          data, or with chunks these, go to this file, which is to be mounted with the image; needs Linux 5.16
    bases         images that are further devices: what they hold is not stored again; needs Linux 5.16
    base_devices  the bases' own devices, in any order
    archives      tar files that are further devices: members are used where they lie, if the tree's contents are theirs
    baseline      an image that this one takes the place of: what has not changed stays where it was
    compact       with a baseline: leave no free blocks, whatever has to move for that
    profile       paths from the root, or profile.Use, in the order of their first use: what they name and its metadata
                  stand at the front
    xattr_tolerance  attributes of more inodes than this are shared; negative: none are stored
    xattr_filter  store which names an inode lacks
    xattr_prefixes  long prefixes of attributes' names, kept in a table; needs Linux 6.4
    fingerprints  files carry the sha256 of what they hold, by which equal files of several images share their pages in
                  memory: Linux 7.0, which older ones mount, too
    scanned       the tree is what `directory.scan` found: where a file of more than 128 KiB has another time in the end
                  it was changed while it was being read, which is a SourceError
    kernel        refuse what this kernel cannot mount
    jobs          threads or processes that read and compress; None: what suits the processors; 1: one thread
    cache         compressed data of earlier builds
    ahead         files of the tree that are being compressed already, under the same options
    meter         measures what the codecs take
    progress      called with (done, total) bytes of content
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
        if self.block_size != 1 << bits or not BLKSZBITS_MIN <= bits <= BLKSZBITS_MAX:
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
        """Whether there may be further devices."""
        return self.blob is not None or bool(self.bases or self.archives)

    @property
    def uses(self) -> tuple[Use, ...]:
        """The profile, whole files spelled out."""
        from erofs_edge.erofs.profile import Use

        return tuple(Use(one) if isinstance(one, bytes) else one for one in self.profile)

    @property
    def block_bits(self) -> int:
        return self.block_size.bit_length() - 1

    @property
    def pcluster_size(self) -> int:
        """Bytes, the default filled in."""
        return self.pcluster if self.pcluster is not None else self.block_size

    @property
    def packed_pcluster_size(self) -> int:
        """Bytes, the default filled in."""
        if self.packed_pcluster is not None:
            return self.packed_pcluster
        most = min(PCLUSTER_MAX, LZ4_PCLUSTER_BLOCKS_MAX * self.block_size)
        return max(self.pcluster_size, min(PACKED_FACTOR * self.pcluster_size, most))

    @property
    def pcluster_largest(self) -> int:
        """Bytes of the largest pcluster that the image may have."""
        return max(self.pcluster_size, self.packed_pcluster_size if self.fragments != "none" else 0)

    @property
    def shares(self) -> bool:
        """Whether equal files may share their blocks."""
        return self.dedupe or self.fragments != "none"

    @property
    def big_pclusters(self) -> bool:
        """More than one block a pcluster: needs Linux 5.13 and an incompatible feature bit."""
        return self.compression != "none" and self.pcluster_largest > self.block_size

    @property
    def attributes(self) -> AttributeRules:
        """Raises UsageError for prefixes that the format cannot hold."""
        own = (FINGERPRINT,) if self.fingerprints else ()
        return AttributeRules(self.xattr_tolerance, self.xattr_filter, (*self.xattr_prefixes, *own))

    @property
    def features(self) -> list[str]:
        """Names in gate.FEATURES of what the options ask for, whatever the tree."""
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
        """Threads: more than processors, so that one that waits for the interpreter's lock leaves none idle; where
        compressing takes no longer than everything else does, more would only disturb each other."""
        if self.jobs is not None:
            return self.jobs
        is_fast = self.compression in ("none", "lz4") and not self.rules
        return (os.cpu_count() or 1) + (0 if is_fast else 2)

    @property
    def processes(self) -> int:
        """What takes the place of threads where that can be: as many as there are processors. 1: nothing does."""
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
            "data on a further device cannot keep its place", hint="leave out one of --baseline and the further devices"
        )


def _check_lz4(options: WriteOptions) -> None:
    """Kernels refuse an image that tells of larger ones, whatever the block size."""
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
