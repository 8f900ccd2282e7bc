# SPDX-License-Identifier: Apache-2.0
"""Typed values of how a file system is written: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import HostPath, Size

Compression = Literal["none", "lz4", "lz4hc", "zstd", "deflate", "lzma"]
Level = Annotated[int, Meta(ge=0, le=109)]


class CompressionRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How files are compressed whose path matches."""

    match: Annotated[str, Meta(min_length=1)]
    """a glob: of the name, or (with '/') of the whole path; '**' crosses directories"""
    compression: Compression
    """the algorithm; 'none' leaves files as they are"""
    level: Level | None = None
    """as in `erofs`"""
    pcluster: Size | None = None
    """as in `erofs`, and not given: that one"""
    dictionary: Size | None = None
    """as in `erofs`"""


class Erofs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the file system is written; mkfs.erofs's words."""

    compression: Compression = "lz4hc"
    """the algorithm: mkfs.erofs -z. Kernels read zstd from 6.10 on, deflate 6.6, lzma 5.16, if built with it"""
    level: Level | None = None
    """lz4hc 1 to 12, zstd 1 to 22, deflate 1 to 12, lzma 0 to 9 and (slower) 100 to 109: the number after the comma of
    mkfs.erofs -z; not given: 7 (8 for kernels), 3, 6, 6. From lz4hc 7 on, what fits one pcluster gets a faster level
    where that needs no more blocks"""
    dictionary: Size | None = None
    """how far matches reach back, for zstd (at most 1M) and lzma (at most 8M): dictsize of mkfs.erofs -z"""
    rules: list[CompressionRule] = []
    """how single files are compressed; the first rule that matches wins"""
    pcluster: Size = "64K"
    """the most that is compressed together, a multiple of the block size: mkfs.erofs -C"""
    block_size: Size = 4096
    """bytes of a block: mkfs.erofs -b"""
    chunksize: Size | None = None
    """bytes: files that are not compressed are stored in chunks, equal ones once: mkfs.erofs --chunksize"""
    dedupe: bool = False
    """equal files, and equal parts of files, share their blocks: mkfs.erofs -Ededupe. Where they are compressed kernels
    read that from 6.1 on"""
    ztailpacking: bool = False
    """the last compressed bytes of a file stand beside its inode: mkfs.erofs -Eztailpacking (Linux 5.17)"""
    fragments: Literal["none", "tails", "all"] = "none"
    """'tails': ends of files, and small files, are compressed together: mkfs.erofs -Efragments; 'all': whole files
    are: -Eall-fragments (Linux 6.1)"""
    packed_pcluster: Size | None = None
    """as `pcluster`, of what `fragments` puts together; not given: 4 times that. Larger is smaller, and slower to
    read"""
    baseline: HostPath | None = None
    """an image, or the output folder of a build, that this one takes the place of: what has not changed stays where it
    was (docs/layout.md)"""
    profile: HostPath | None = None
    """a file that lists what is used first, in order: that comes to the front (docs/layout.md)"""


class Selinux(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Labels of files; mkfs.erofs's words."""

    file_contexts: HostPath
    """a file_contexts file, relative to this one, that says the label of each path: mkfs.erofs --file-contexts"""
