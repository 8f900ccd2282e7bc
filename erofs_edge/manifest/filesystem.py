# SPDX-License-Identifier: Apache-2.0
"""Typed values of how a file system is written: part of the vocabulary of model.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from erofs_edge.manifest.words import HostPath, Size

Compression = Literal["none", "lz4", "lz4hc", "zstd", "deflate", "lzma"]
Level = Annotated[int, Meta(ge=0, le=109)]


class CompressionRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Compression of files whose path matches."""

    match: Annotated[str, Meta(min_length=1)]
    """a glob: of the name or, with '/', of the whole path; '**' crosses directories"""
    compression: Compression
    """the algorithm; 'none' leaves files as they are"""
    level: Level | None = None
    """as in `erofs`"""
    pcluster: Size | None = None
    """as in `erofs`; default: the value there"""
    dictionary: Size | None = None
    """as in `erofs`"""


class Erofs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the file system is written, with mkfs.erofs's terms."""

    compression: Compression = "lz4hc"
    """the algorithm: mkfs.erofs -z. Kernels read zstd from 6.10 on, deflate from 6.6, lzma from 5.16, if built with
    it"""
    level: Level | None = None
    """lz4hc 1 to 12, zstd 1 to 22, deflate 1 to 12, lzma 0 to 9 and (slower) 100 to 109: the number after the comma
    of mkfs.erofs -z. Default: 7 (8 for kernels), 3, 6, 6. From lz4hc 7 on, data that fits one pcluster gets a
    faster level if that needs no more blocks"""
    dictionary: Size | None = None
    """how far back matches reach, for zstd (at most 1M) and lzma (at most 8M): dictsize of mkfs.erofs -z"""
    rules: list[CompressionRule] = []
    """compression of single files; the first rule that matches wins"""
    pcluster: Size = "64K"
    """the most data compressed together, a multiple of the block size: mkfs.erofs -C"""
    block_size: Size = 4096
    """size of a block in bytes: mkfs.erofs -b"""
    chunksize: Size | None = None
    """chunk size in bytes: files that are not compressed are stored in chunks, equal chunks once: mkfs.erofs
    --chunksize"""
    dedupe: bool = False
    """equal files, and equal parts of files, share their blocks: mkfs.erofs -Ededupe. Kernels read shared
    compressed blocks from 6.1 on"""
    ztailpacking: bool = False
    """store the last compressed bytes of a file next to its inode: mkfs.erofs -Eztailpacking (Linux 5.17)"""
    fragments: Literal["none", "tails", "all"] = "none"
    """'tails' compresses ends of files, and small files, together: mkfs.erofs -Efragments; 'all' does so with whole
    files: -Eall-fragments (Linux 6.1)"""
    packed_pcluster: Size | None = None
    """like `pcluster`, for the data that `fragments` puts together; default: 4 times `pcluster`. A larger value
    makes the image smaller and slower to read"""
    baseline: HostPath | None = None
    """an image, or the output folder of a build, that this one replaces: unchanged data stays where it was
    (docs/layout.md)"""
    profile: HostPath | None = None
    """a file that lists what is used first, in order: it is placed at the front (docs/layout.md)"""


class Selinux(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Labels of files, with mkfs.erofs's terms."""

    file_contexts: HostPath
    """a file_contexts file, relative to this file, that gives the label of each path: mkfs.erofs --file-contexts"""
