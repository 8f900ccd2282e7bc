# SPDX-License-Identifier: Apache-2.0
"""The EROFS writer: turns a FileTree into an image file.

Order on disk: superblock, root inode and shared attributes in the head; file data in the order of the plan; then all
other inodes and directory blocks. So contents stream through once, and only the head is written out of order. In small
images, all inodes fit into the head's own block. With a baseline, its order is kept, see stable.py. Nids count from
byte 0.
"""

from __future__ import annotations

import stat
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.erofs.chunks import ChunkStore
from erofs_edge.erofs.codings import Codings, choose_codings
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.gate import check_kernel, minimum_kernel, superblock_features
from erofs_edge.erofs.head import Head, plan_head
from erofs_edge.erofs.hot import Hot, find_hot
from erofs_edge.erofs.info import ErofsInfo
from erofs_edge.erofs.layout import Packing, directory_blocks, footprint, place
from erofs_edge.erofs.metadata import HotBlocks, patch_metadata, write_metadata
from erofs_edge.erofs.ondisk import (
    BLOCKS_MAX,
    INCOMPAT_48BIT,
    NULL_ADDR,
    SUPER_OFFSET,
    SUPER_SIZE,
    SUPERBLOCK,
    Superblock,
)
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Follower, Sink, replacing, scratch
from erofs_edge.erofs.plan import NO_BLOCK, Node, Plan, choose_flat_layout, make_plan, reach
from erofs_edge.erofs.ranged import Order
from erofs_edge.erofs.space import Space
from erofs_edge.erofs.spool import NoBaseline, Spool
from erofs_edge.erofs.store_contents import store_contents
from erofs_edge.errors import CapacityError, UsageError
from erofs_edge.tree import FileTree

if TYPE_CHECKING:  # imported late, for builds with a baseline or layers only
    from erofs_edge.erofs.baseline import Baseline
    from erofs_edge.erofs.layers import Layers
    from erofs_edge.erofs.stable import Stable

__all__ = ["ErofsInfo", "WriteOptions", "write_image"]

EARLY_MAX = 1 << 40  # bytes of contents up to which every inode can express their block numbers


def write_image(tree: FileTree, out: Path, options: WriteOptions, follower: Follower | None = None) -> ErofsInfo:
    """Write the image of a tree to `out`, which is replaced only on success. `follower` reads the file as it grows.

    Raises SourceError (something in the tree cannot be stored or read), CapacityError (not enough space, or more blocks
    than the format can number), UsageError (`out` is not a regular file, the baseline was built with other options),
    ErofsFormatError (the baseline is not an image).
    """
    with ExitStack() as stack:
        baseline = None
        if options.baseline is not None:
            from erofs_edge.erofs.baseline import open_baseline

            baseline = stack.enter_context(open_baseline(options.baseline, options.block_size))
        if options.fingerprints:
            from erofs_edge.erofs.fingerprints import with_fingerprints

            tree = with_fingerprints(tree)
        return _write(tree, out, options, baseline, follower)


class _Written(NamedTuple):
    """blocks: of the image; data_blocks: those of files; hot_blocks: blocks from the head on with what the profile
    names; stable: with a baseline, the resulting layout; changed: blocks that differ from it."""

    files: FileStore
    chunks: ChunkStore | None
    blocks: int
    data_blocks: int
    uuid: bytes
    hot_blocks: int = 0
    stable: Stable | None = None
    changed: int | None = None


def _write(
    tree: FileTree, out: Path, options: WriteOptions, baseline: Baseline | None, follower: Follower | None
) -> ErofsInfo:
    plan = make_plan(tree, options, baseline.epoch if baseline else None)
    hot = find_hot(tree, plan.nodes, options.uses)
    plan.hot = hot.nodes
    plan.apart = frozenset(hot.ranges) if not options.has_layers else frozenset()
    cache_before = (options.cache.hits, options.cache.misses) if options.cache else (0, 0)
    for device in (options.blob, *options.bases, *options.base_devices, *options.archives):
        if device is not None and device.resolve() == out.resolve():
            raise UsageError("the image and its extra device are the same file", where=str(out))
    with ExitStack() as stack:
        layers = None
        if options.has_layers:
            from erofs_edge.erofs.layers import open_layers

            layers = stack.enter_context(open_layers(plan, options))
        codings = choose_codings(plan, options)
        codings = layers.codings(codings) if layers else codings
        head = plan_head(plan, codings, options, baseline.shared if baseline else {})
        if layers:
            layers.loans.big = codings.big
            layers.lend(plan)
        hashing = options.uuid is None and baseline is None
        sink = stack.enter_context(replacing(out, hashing=hashing, follower=follower))
        if baseline is not None:
            waiting = stack.enter_context(scratch(out))
            written = _write_stable(plan, codings, head, sink, waiting, options, hot, baseline)
        elif plan.apart:
            waiting = stack.enter_context(scratch(out))
            written = _write_ranged(plan, codings, head, sink, waiting, options, hot)
        else:
            blob = stack.enter_context(replacing(options.blob, hashing=True)) if options.blob is not None else None
            written = _write_new(plan, codings, head, sink, options, blob, layers)
        features = _features(sink, options)
    return _info(plan, out, options, written, layers, features, cache_before, hot.missing)


def _info(
    plan: Plan,
    out: Path,
    options: WriteOptions,
    written: _Written,
    layers: Layers | None,
    features: list[str],
    cache_before: tuple[int, int],
    unmatched: int,
) -> ErofsInfo:
    block_size = options.block_size
    files, chunks, stable = written.files, written.chunks, written.stable
    cache_after = (options.cache.hits, options.cache.misses) if options.cache else (0, 0)
    return ErofsInfo(
        path=out,
        size=written.blocks * block_size,
        block_size=block_size,
        blocks=written.blocks,
        data_blocks=written.data_blocks,
        metadata_blocks=written.blocks - written.data_blocks - (stable.free if stable else 0),
        inodes=len(plan.nodes),
        fragments=files.fragments,
        packed=plan.packed.size if plan.packed is not None else 0,
        uuid=written.uuid,
        epoch=plan.epoch,
        volume_name=options.volume_name,
        uncompressed=files.size + (layers.loans.size if layers else 0),
        kinds=plan.kinds,
        compressed=files.compressed,
        stored=files.stored,
        reused=files.reused,
        shared=files.shared,
        repeats=files.repeats,
        repeated=files.repeated,
        cache_hits=cache_after[0] - cache_before[0],
        cache_misses=cache_after[1] - cache_before[1],
        chunked=chunks.files if chunks else 0,
        equal_chunks=chunks.equal if chunks else 0,
        holes=chunks.holes if chunks else 0,
        device_blocks=layers.own_blocks if layers else 0,
        lent=layers.loans.files if layers else 0,
        lent_bytes=layers.loans.size if layers else 0,
        devices=tuple(device.path for device in layers.loans.used) if layers else (),
        free_blocks=stable.free if stable else 0,
        kept_blocks=stable.kept if stable else None,
        changed_blocks=written.changed,
        hot_blocks=written.hot_blocks,
        unmatched=unmatched,
        placed_anew=stable.anew if stable else None,
        features=features,
        minimum_kernel=minimum_kernel(features),
    )


def _write_new(
    plan: Plan,
    codings: Codings,
    head: Head,
    sink: Sink,
    options: WriteOptions,
    blob: Sink | None,
    layers: Layers | None,
) -> _Written:
    block_size = options.block_size
    sink.append([bytes(head.blocks * block_size)])
    chunks = _chunks(options, sink, blob, layers)
    hot = HotBlocks([head.hole])
    data = blob if blob is not None and chunks is None else sink
    packing = _begin_packing(plan, head, options) if layers is None and blob is None else None
    after_hot = partial(_place_hot, plan, head, hot, sink, options)
    files = store_contents(plan, codings, data, options, chunks, after_hot, packing=packing)
    data_end = sink.position // block_size
    blocks = _place(plan, head, hot, data_end, options, packing)
    table = layers.finish(plan, files, chunks, blob, blocks) if layers else b""
    uuid = write_metadata(plan, head, sink, options, hot=hot, data_end=data_end, blocks=blocks, table=table)
    sink.finish(blocks * block_size)
    data_blocks = data_end - head.blocks - hot.blocks
    return _Written(files, chunks, blocks, data_blocks, uuid, max(0, hot.block + hot.blocks - head.blocks))


def _write_ranged(
    plan: Plan, codings: Codings, head: Head, sink: Sink, waiting: Sink, options: WriteOptions, hot: Hot
) -> _Written:
    """Like `_write_new`, if a profile names parts of files: data waits until it is known which extents contain them."""
    block_size = options.block_size
    spool = Spool(sink, waiting, NoBaseline(), Space(), block_size, hot)
    chunks = _chunks(options, spool, None, None)
    files = store_contents(plan, codings, spool, options, chunks)
    spool.finish(options.chunk_size)
    order = Order(spool, head.blocks, block_size)
    order.leave(1)
    files.settle(order.where)  # now the length of each index is known
    front = HotBlocks([head.hole], order.behind_hot)
    front.blocks = _place_nodes(plan.nodes[0], plan.hot, head, front, front.block, options) - front.block
    order.leave(front.blocks)
    files.settle(order.where)
    plan.incompat |= files.features  # shared pclusters become known only now
    sink.append([bytes(head.blocks * block_size)])
    order.write(sink)
    data_end = sink.position // block_size
    blocks = _place(plan, head, front, data_end, options)
    uuid = write_metadata(plan, head, sink, options, hot=front, data_end=data_end, blocks=blocks, table=b"")
    sink.finish(blocks * block_size)
    data_blocks = data_end - head.blocks - front.blocks
    return _Written(files, chunks, blocks, data_blocks, uuid, front.block + front.blocks - head.blocks)


def _write_stable(
    plan: Plan,
    codings: Codings,
    head: Head,
    sink: Sink,
    waiting: Sink,
    options: WriteOptions,
    hot: Hot,
    baseline: Baseline,
) -> _Written:
    """Like `_write_new`, with a baseline, which influences the layout."""
    from erofs_edge.erofs.stable import arrange, check_options, claim, keep_numbers

    block_size = options.block_size
    if not options.rules:
        check_options(baseline, codings, block_size)
    keep_numbers(plan, baseline)
    spool = Spool(sink, waiting, baseline, claim(head, baseline), block_size, hot if plan.apart else None)
    chunks = _chunks(options, spool, None, None)
    files = store_contents(plan, codings, spool, options, chunks, baseline=baseline)
    spool.finish(options.chunk_size)
    stable = arrange(plan, head, files, spool, baseline, block_size, compact=options.compact)
    plan.incompat |= files.features
    _check_blocks(stable.blocks, block_size, NULL_ADDR)
    spool.write(stable.blocks)
    uuid, changed = patch_metadata(plan, head, sink, options, baseline, stable.blocks)
    return _Written(files, chunks, stable.blocks, stable.data, uuid, stable=stable, changed=changed)


def _features(sink: Sink, options: WriteOptions) -> list[str]:
    """Return the features that the image turned out to need. Raises UsageError if the requested kernel lacks any."""
    raw = Superblock(*SUPERBLOCK.unpack(sink.read(SUPER_OFFSET, SUPER_SIZE)))
    features = superblock_features(raw, options.features)
    check_kernel(features, options.kernel)
    return features


def _chunks(options: WriteOptions, sink: Sink | Spool, blob: Sink | None, layers: Layers | None) -> ChunkStore | None:
    if options.chunk_size is None:
        return None
    return ChunkStore(
        sink if blob is None else blob,
        options.block_bits,
        options.chunk_size,
        indexes=options.chunk_indexes,
        device=int(blob is not None),
        known=layers.known_chunks() if layers else None,
        moves=layers is not None,
    )


def _place_hot(plan: Plan, head: Head, hot: HotBlocks, sink: Sink, options: WriteOptions) -> None:
    """Place the inodes and directories that the profile names, and reserve their blocks in the image."""
    block_size = options.block_size
    hot.block = sink.position // block_size
    hot.blocks = _place_nodes(plan.nodes[0], plan.hot, head, hot, hot.block, options) - hot.block
    sink.append([bytes(hot.blocks * block_size)])


def _begin_packing(plan: Plan, head: Head, options: WriteOptions) -> Packing | None:
    """Return a Packing that packs inodes while contents are being stored. None if what follows an inode becomes known
    only after everything is stored, or if the inodes are not stored in that order."""
    if options.fragments != "none" or plan.hot or sum([node.size for node in plan.nodes]) > EARLY_MAX:
        return None
    nodes = plan.nodes[1:]
    directories = directory_blocks(nodes, options.block_size)
    for node in nodes:
        if node.inode.mode & 0o170000 == stat.S_IFLNK:
            choose_flat_layout(node, options.block_size, options.block_size - node.head_size)
    packing = Packing(nodes, options.block_size, [head.hole])
    packing.directories = directories
    return packing


def _place(
    plan: Plan, head: Head, hot: HotBlocks, data_end: int, options: WriteOptions, packing: Packing | None = None
) -> int:
    """Place everything else. Return the number of blocks of the image."""
    others = [node for node in plan.nodes if node.nid < 0]
    blocks = _place_nodes(plan.nodes[0], others, head, hot, data_end, options, packing)
    _check_blocks(blocks, options.block_size, BLOCKS_MAX)
    if options.wide or blocks > NULL_ADDR:
        plan.incompat |= INCOMPAT_48BIT
    return blocks


def _place_nodes(
    root: Node,
    nodes: list[Node],
    head: Head,
    hot: HotBlocks,
    block: int,
    options: WriteOptions,
    packing: Packing | None = None,
) -> int:
    """Place nodes in the holes and in blocks from `block` on; return the block after. `packing` may have begun."""
    block_size = options.block_size
    if head.root_blocks and root.i_u == NO_BLOCK:
        root.i_u = block
        block += head.root_blocks

    def allocate(count: int) -> int:
        nonlocal block
        block += count
        return block - count

    nodes = sorted([node for node in nodes if node is not root], key=attrgetter("number"))
    if block > NULL_ADDR // 2:  # metadata is held in memory, so it has fewer blocks than that
        # after all data and, at worst, one block per inode
        last = block + sum(-(-footprint(node) // block_size) + len(node.names) for node in nodes)
        for node in nodes:
            if last >= NULL_ADDR and node.inode.is_dir:
                reach(node, last, options)
    if packing is None:
        packing = Packing(nodes, block_size, hot.holes)
        packing.directories = directory_blocks(nodes, block_size)
    hot.holes = place(packing, packing.directories, allocate)
    return block


def _check_blocks(blocks: int, block_size: int, most: int) -> None:
    if blocks > most:
        raise CapacityError(f"{blocks} blocks of {block_size} bytes are more than an EROFS image can have")
