# SPDX-License-Identifier: Apache-2.0
"""Inodes, directories and the head of an image, written once everything is placed."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

from erofs_edge.erofs.at_once import SMALL
from erofs_edge.erofs.contents import check_unchanged
from erofs_edge.erofs.encode import encoded
from erofs_edge.erofs.head import Head, finish_head
from erofs_edge.erofs.identity import content_digest, uuid_from
from erofs_edge.erofs.ondisk import SUPER_OFFSET, SUPER_SIZE
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Chunk, Sink
from erofs_edge.erofs.plan import Plan

if TYPE_CHECKING:  # imported late, for builds with a baseline only
    from erofs_edge.erofs.baseline import Baseline


PIECE = 1 << 20  # bytes of metadata handed to the sink at a time


class HotBlocks:
    """Where the metadata named by the profile goes: blocks between its data and the rest. `holes` are the free ranges
    in these and in the first blocks."""

    __slots__ = ("block", "blocks", "holes")

    def __init__(self, holes: list[tuple[int, int]], block: int = 0) -> None:
        self.holes, self.block, self.blocks = holes, block, 0


def write_metadata(
    plan: Plan,
    head: Head,
    sink: Sink,
    options: WriteOptions,
    *,
    hot: HotBlocks,
    data_end: int,
    blocks: int,
    table: bytes,
) -> bytes:
    """Append inodes and directories, write the head, and return the image's UUID. All contents must have been read.
    Raises SourceError if some have changed meanwhile."""
    if options.scanned:
        _check_contents(plan)
    first = bytearray(head.blocks * options.block_size)
    body_at = data_end * options.block_size
    hot_at = hot.block * options.block_size
    front = bytearray(hot.blocks * options.block_size)
    body: list[tuple[int, Chunk]] = []

    def write(offset: int, data: Chunk) -> None:
        if offset < len(first):
            first[offset : offset + len(data)] = data
        else:
            front[offset - hot_at : offset - hot_at + len(data)] = data

    write(SUPER_OFFSET + SUPER_SIZE, head.record)
    write(head.shared_at, head.shared)
    write(plan.devices_at, table)
    for part in encoded(plan.nodes, options.block_size):
        if part[0] < body_at:
            write(*part)
        else:
            body.append(part)
    for pieces in _pieces(body, body_at, blocks * options.block_size):
        sink.append(pieces)
    sink.flush()
    sink.write_at(hot_at, front)
    uuid = options.uuid
    if uuid is None:
        assert sink.hashing is not None  # noqa: S101 - requested if no UUID is given
        content = content_digest(sink, sink.position) if sink.was_rewound or front else sink.hashing.digest()
        uuid = uuid_from(content, first)
    finish_head(first, plan, head, options, blocks=blocks, uuid=uuid)
    sink.write_at(0, first)
    return uuid


def _check_contents(plan: Plan) -> None:
    """Raises SourceError. Small files, which are read whole by a single call, are not checked: checking ten thousand of
    them takes a fiftieth of a build."""
    for node in plan.files:
        if node.size > SMALL:
            check_unchanged(node.inode, node.where)


def _pieces(parts: list[tuple[int, Chunk]], start: int, end: int) -> Iterator[list[Chunk]]:
    """Yield bytes [start, end) of the image, some at a time: the parts at their offsets, with zeros in between. Empties
    the list of parts."""
    parts.sort(key=itemgetter(0), reverse=True)
    pieces: list[Chunk] = []
    due = start + PIECE
    while parts:
        offset, data = parts.pop()
        if gap := offset - start:
            pieces.append(bytes(gap))
        pieces.append(data)
        start = offset + len(data)
        if start >= due:
            yield pieces
            pieces = []
            due = start + PIECE
    yield [*pieces, bytes(end - start)]


def patch_metadata(
    plan: Plan, head: Head, sink: Sink, options: WriteOptions, baseline: Baseline, blocks: int
) -> tuple[bytes, int]:
    """Write inodes, directories and the head in place. Return the image's UUID and the number of changed blocks.

    All contents must have been read. Raises SourceError if some have changed meanwhile.
    """
    if options.scanned:
        _check_contents(plan)
    block_size = options.block_size
    start, end = head.blocks * block_size, blocks * block_size
    parts: dict[int, bytearray] = {}

    def write(offset: int, data: Chunk) -> None:
        while data:
            block, at = divmod(offset, block_size)
            part = parts.setdefault(block, bytearray(block_size))
            length = min(len(data), block_size - at)
            part[at : at + length] = data[:length]
            offset, data = offset + length, data[length:]

    write(0, bytes(start))
    write(SUPER_OFFSET + SUPER_SIZE, head.record)
    write(head.shared_at, head.shared)
    for offset, data in encoded(plan.nodes, block_size):
        write(offset, data)
    first = b"".join(parts.pop(block) for block in range(head.blocks))
    for block, part in sorted(parts.items()):
        sink.write_at(block * block_size, part)
    sink.finish(end)
    changed = 0

    def compare(offset: int, data: bytes) -> None:
        nonlocal changed
        changed += baseline.differing(offset, data)

    content = content_digest(sink, end, compare, start)
    uuid = options.uuid if options.uuid is not None else uuid_from(content, first)
    raw = bytearray(first)
    finish_head(raw, plan, head, options, blocks=blocks, uuid=uuid)
    sink.write_at(0, raw)
    compare(0, bytes(raw))
    return uuid, changed
