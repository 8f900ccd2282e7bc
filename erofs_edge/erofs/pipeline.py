# SPDX-License-Identifier: Apache-2.0
"""Reading and compressing in threads: pieces of files in, stored pieces out, always in the same order.

Threads pay because reading, hashing and compressing happen in C without the interpreter's lock. What is in flight is
bounded in bytes, so memory does not grow with the tree.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from erofs_edge.erofs.cache import CompressionCache, cache_key
from erofs_edge.erofs.compress import CutRules, Cutter, Segment, gains
from erofs_edge.erofs.contents import PIECE, digest, read_piece
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.plan import Node
from erofs_edge.tree import Content

BATCH = 1 << 20  # bytes of small files that make one task
IN_FLIGHT = 64 << 20  # bytes of content being read, compressed, or waiting for their turn
HASH_BATCH = 64  # files


@dataclass(slots=True)
class Piece:
    """Bytes [offset, offset + length) of a file, or (twin) a file that has the content of an earlier one."""

    node: Node
    offset: int
    length: int
    twin: Node | None = None

    @property
    def is_whole(self) -> bool:
        return self.length == self.node.size

    @property
    def is_last(self) -> bool:
        return self.offset + self.length == self.node.size


class Stored(NamedTuple):
    """What became of a piece: `segment` when it was compressed, else `data` as it is (None for twins)."""

    piece: Piece
    segment: Segment | None
    data: bytes | None


class _Worker(threading.local):
    cutter: Cutter | None = None


def find_twins(files: Iterable[Node], pool: ThreadPoolExecutor, *, larger_than: int) -> dict[Node, Node]:
    """Files with the content of an earlier one → the first of them. Only files of equal size are read."""
    candidates = [n for n in files if n.size > larger_than]
    sizes = Counter(n.size for n in candidates)
    candidates = [n for n in candidates if sizes[n.size] > 1]
    batches = [candidates[at : at + HASH_BATCH] for at in range(0, len(candidates), HASH_BATCH)]
    hashes = pool.map(lambda batch: [digest(_content(n), n.where) for n in batch], batches)
    twins = {}
    first: dict[bytes, Node] = {}
    for node, content_hash in zip(candidates, (h for batch in hashes for h in batch), strict=True):
        original = first.setdefault(content_hash, node)
        if original is not node:
            twins[node] = original
    return twins


def store(
    files: Iterable[Node],
    twins: dict[Node, Node],
    pool: ThreadPoolExecutor,
    *,
    rules: CutRules | None,
    block_size: int,
    cache: CompressionCache | None,
) -> Iterator[Stored]:
    """Every piece of every file, in order. Without rules nothing is compressed."""
    local = _Worker()

    def work(batch: list[Piece]) -> list[Stored]:
        if local.cutter is None and rules is not None:
            local.cutter = Cutter(rules)
        return [_store_piece(piece, local.cutter, cache, block_size) for piece in batch]

    running: deque[tuple[int, Future[list[Stored]]]] = deque()
    in_flight = 0
    for size, batch in _batches(_pieces(files, twins)):
        while running and in_flight + size > IN_FLIGHT:
            done, future = running.popleft()
            yield from future.result()
            in_flight -= done
        running.append((size, pool.submit(work, batch)))
        in_flight += size
    while running:
        yield from running.popleft()[1].result()


def _content(node: Node) -> Content:
    assert node.inode.content is not None  # noqa: S101 - files without content have no pieces
    return node.inode.content


def _pieces(files: Iterable[Node], twins: dict[Node, Node]) -> Iterator[Piece]:
    for node in files:
        if node in twins:
            yield Piece(node, 0, node.size, twins[node])
            continue
        for offset in range(0, node.size, PIECE):
            yield Piece(node, offset, min(PIECE, node.size - offset))


def _batches(pieces: Iterable[Piece]) -> Iterator[tuple[int, list[Piece]]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        cost = 0 if piece.twin else piece.length
        if batch and size + cost > BATCH:
            yield size, batch
            batch, size = [], 0
        batch.append(piece)
        size += cost
    if batch:
        yield size, batch


def _store_piece(piece: Piece, cutter: Cutter | None, cache: CompressionCache | None, block_size: int) -> Stored:
    if piece.twin:
        return Stored(piece, None, None)
    node = piece.node
    content = _content(node)
    data = read_piece(content, piece.offset, piece.length, node.where)
    if cutter is None or node.size <= block_size or _is_incompressible(piece, data, cutter):
        return Stored(piece, None, data)
    segment = _cut(data, cutter, cache)
    if piece.is_whole and not gains(node.size, segment.blocks, block_size):
        return Stored(piece, None, data)
    return Stored(piece, segment, None)


def _is_incompressible(piece: Piece, data: bytes, cutter: Cutter) -> bool:
    """The same answer for every piece of a file."""
    offset, length = cutter.probe_range(piece.node.size)
    if piece.is_whole:
        return cutter.is_incompressible(data[:16], data[offset : offset + length])
    content, where = _content(piece.node), piece.node.where
    return cutter.is_incompressible(read_piece(content, 0, 16, where), read_piece(content, offset, length, where))


def _cut(data: bytes, cutter: Cutter, cache: CompressionCache | None) -> Segment:
    if cache is None:
        return cutter.cut(data)
    key = cache_key(hashlib.sha256(data).digest(), cutter.rules.identity)
    payload = cache.get(key)
    segment = _unpack(payload, data, cutter.rules.block_size) if payload is not None else None
    if segment is None:
        segment = cutter.cut(data)
        cache.put(key, _pack(segment))
    return segment


def _pack(segment: Segment) -> list[bytes | memoryview]:
    """Number of extents, (length, blocks with the top bit for raw) of each, then the compressed pclusters."""
    numbers = [len(segment.extents)]
    for extent in segment.extents:
        numbers += (extent.length, extent.blocks | extent.raw << 31)
    compressed = [c for e, c in zip(segment.extents, segment.chunks, strict=True) if not e.raw]
    return [struct.pack(f"<{len(numbers)}I", *numbers), *compressed]


def _unpack(payload: bytes, data: bytes, block_size: int) -> Segment | None:
    """The segment that `_pack` stored, raw runs taken from the content; None if it does not fit the content."""
    if len(payload) < 4:
        return None
    count = int.from_bytes(payload[:4], "little")
    at = 4 + 8 * count
    if len(payload) < at:
        return None
    numbers = struct.unpack_from(f"<{2 * count}I", payload, 4)
    segment = Segment([], [])
    blob, source = memoryview(payload), memoryview(data)
    start = 0
    for length, field in zip(numbers[::2], numbers[1::2], strict=True):
        blocks, raw = field & 0x7FFFFFFF, bool(field >> 31)
        segment.extents.append(Extent(length, blocks, raw))
        if raw:
            segment.chunks.append(source[start : start + length])
        else:
            segment.chunks.append(blob[at : at + blocks * block_size])
            at += blocks * block_size
        start += length
    return segment if start == len(data) and at == len(payload) else None
