# SPDX-License-Identifier: Apache-2.0
"""The EROFS writer: a FileTree becomes an image file.

Order on disk: superblock, root inode and shared attributes in the head; file data in order of the plan; then all
other inodes and directory blocks. So contents stream through once, and only the head is written out of turn. Small
images need nothing beyond the head's own block for their inodes. Nids count from byte 0.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from erofs_edge.codec.registry import find_codec
from erofs_edge.erofs.compress import CutRules
from erofs_edge.erofs.encode import write_nodes
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.gate import check_kernel, minimum_kernel, superblock_features
from erofs_edge.erofs.head import Head, finish_head, plan_head
from erofs_edge.erofs.layout import place
from erofs_edge.erofs.ondisk import NULL_ADDR, SUPER_OFFSET, SUPER_SIZE, SUPERBLOCK, Superblock
from erofs_edge.erofs.options import ErofsInfo, WriteOptions
from erofs_edge.erofs.output import Sink, replacing
from erofs_edge.erofs.pipeline import find_twins, store
from erofs_edge.erofs.plan import Node, Plan, make_plan
from erofs_edge.errors import CapacityError
from erofs_edge.tree import FileTree

__all__ = ["ErofsInfo", "WriteOptions", "write_image"]

KINDS = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symlinks",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
    stat.S_IFIFO: "fifos",
    stat.S_IFSOCK: "sockets",
}


def write_image(tree: FileTree, out: Path, options: WriteOptions) -> ErofsInfo:
    """Write the image of a tree to `out`, which is replaced only when everything went well.

    Raises SourceError (something in the tree cannot be stored or read), CapacityError (no space, or more blocks than
    the format can number), UsageError (`out` is not a regular file).
    """
    plan = make_plan(tree, options)
    head = plan_head(plan, options)
    block_size = options.block_size
    cache_before = (options.cache.hits, options.cache.misses) if options.cache else (0, 0)
    with replacing(out, hashing=options.uuid is None) as sink:
        sink.append([bytes(head.blocks * block_size)])
        files = _store_contents(plan, sink, options)
        data_end = sink.position // block_size
        blocks = _place(plan, head, data_end, block_size)
        uuid = _write_metadata(plan, head, sink, options, data_end=data_end, blocks=blocks)
        sink.finish(blocks * block_size)
        features = _features(sink, options)
    cache_after = (options.cache.hits, options.cache.misses) if options.cache else (0, 0)
    return ErofsInfo(
        path=out,
        size=blocks * block_size,
        block_size=block_size,
        blocks=blocks,
        data_blocks=data_end - head.blocks,
        metadata_blocks=blocks - data_end + head.blocks,
        inodes=len(plan.nodes),
        uuid=uuid,
        epoch=plan.epoch,
        volume_name=options.volume_name,
        uncompressed=sum(node.size for node in plan.files),
        kinds=dict(sorted(Counter(KINDS[stat.S_IFMT(node.inode.mode)] for node in plan.nodes).items())),
        compressed=files.compressed,
        stored=files.stored,
        reused=files.reused,
        shared=files.shared,
        cache_hits=cache_after[0] - cache_before[0],
        cache_misses=cache_after[1] - cache_before[1],
        features=features,
        minimum_kernel=minimum_kernel(features),
    )


def _features(sink: Sink, options: WriteOptions) -> list[str]:
    """What the image turned out to need. Raises UsageError if the kernel asked for cannot mount it."""
    raw = Superblock(*SUPERBLOCK.unpack(sink.read(SUPER_OFFSET, SUPER_SIZE)))
    features = superblock_features(raw, options.features)
    check_kernel(features, options.kernel)
    return features


def _store_contents(plan: Plan, sink: Sink, options: WriteOptions) -> FileStore:
    """All file data, through threads; then what symlink targets need beyond their inodes."""
    rules = None
    if options.compression != "none":
        codec, level = find_codec(options.compression, options.level)
        rules = CutRules(codec, level, options.block_size, options.pcluster_size)
    done, total = 0, sum(node.size for node in plan.files)
    pool = ThreadPoolExecutor(options.workers, thread_name_prefix="erofs")
    try:
        # reading files of equal size twice pays only where compression is slow
        slow = rules is not None and rules.level is not None
        # a file of less than a block can have one too, if it does not fit beside its inode
        larger_than = options.block_size // 2 if options.dedupe else options.block_size
        twins = find_twins(plan.files, pool, larger_than=larger_than) if slow or options.dedupe else {}
        files = FileStore(sink, options, twins.values())
        for stored in store(plan.files, twins, pool, rules=rules, block_size=options.block_size, cache=options.cache):
            files.take(stored)
            done += stored.piece.length
            if options.progress:
                options.progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    for node in plan.nodes:
        if node.inode.is_symlink:
            files.take_symlink(node)
    plan.incompat |= files.features
    return files


def _place(plan: Plan, head: Head, data_end: int, block_size: int) -> int:
    """Everything gets its place; the number of blocks of the image."""
    root: Node = plan.nodes[0]
    if head.root_blocks:
        root.i_u = data_end
    blocks = place(plan.nodes[1:], hole=head.hole, first_block=data_end + head.root_blocks, block_size=block_size)
    if blocks > NULL_ADDR:
        raise CapacityError(f"{blocks} blocks of {block_size} bytes are more than an EROFS image can have")
    return blocks


def _write_metadata(plan: Plan, head: Head, sink: Sink, options: WriteOptions, *, data_end: int, blocks: int) -> bytes:
    """Append inodes and directories, write the head; the image's UUID."""
    first = bytearray(head.blocks * options.block_size)
    body_at = data_end * options.block_size
    body = bytearray((blocks - data_end) * options.block_size)

    def write(offset: int, data: bytes) -> None:
        if offset < len(first):
            first[offset : offset + len(data)] = data
        else:
            body[offset - body_at : offset - body_at + len(data)] = data

    write(SUPER_OFFSET + SUPER_SIZE, head.record)
    write(head.shared_at, head.shared)
    write_nodes(plan.nodes, options.block_size, write)
    sink.append([body])
    sink.flush()
    uuid = options.uuid
    if uuid is None:
        assert sink.digest is not None  # noqa: S101 - asked for when there is no UUID
        uuid = _uuid_from(hashlib.sha256(sink.digest.digest() + first).digest())
    finish_head(first, plan, options, blocks=blocks, uuid=uuid)
    sink.write_at(0, first)
    return uuid


def _uuid_from(digest: bytes) -> bytes:
    """A UUID of version 8 (RFC 9562: the maker's own scheme)."""
    raw = bytearray(digest[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
