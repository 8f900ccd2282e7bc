# SPDX-License-Identifier: Apache-2.0
"""Read and compress in threads: pieces of files in, stored pieces out, always in the same order.

Threads pay off because reading, hashing and compressing happen in C without the GIL. The data in flight is bounded in
bytes, so memory does not grow with the tree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from erofs_edge.erofs.contents import PIECE
from erofs_edge.erofs.cut_rules import CutRules, Tails
from erofs_edge.erofs.options import Ahead, WriteOptions
from erofs_edge.erofs.piece import ALL, BLOCK, Piece, Stored, Worker, store_piece
from erofs_edge.erofs.plan import Node
from erofs_edge.threads import Threads
from erofs_edge.tree import FileContent

if TYPE_CHECKING:  # imported late, since few builds need it
    from erofs_edge.erofs.sharing import Shares

BATCH = 1 << 20  # bytes of small files per task
IN_FLIGHT = 64 << 20  # bytes of content being read, compressed or waiting for their turn


def store(
    pieces: Iterable[Piece],
    pool: Threads,
    options: WriteOptions,
    *,
    rules: CutRules | None,
    tails: Tails = BLOCK,
    special: Mapping[Node, CutRules | None] = MappingProxyType({}),
    beside: int = 0,
    shares: Shares | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Stored]:
    """Yield every piece in order, stored. Without rules, only files with `special` ones are compressed.

    `beside` is the space in a block for an inode and its data, 0 if they are stored separately. With `shares`, pieces
    may wait for earlier ones, so they must be started in order. What `ahead` has started is taken from there.
    """
    local, cache, block_size = Worker(options.meter), options.cache, options.block_size

    def work(batch: list[Piece]) -> list[Stored]:
        return [store_one(piece) for piece in batch]

    def store_one(piece: Piece) -> Stored:
        own = special.get(piece.node, rules)
        # the end of an uncompressed file does not go to the packed inode either
        cutter = local.cutter(own) if own else None
        if shares is None or not shares.touches(piece.key):
            started: Stored | None = ahead.take(piece) if ahead is not None and piece.twin is None else None
            if started is not None:
                return started
            return store_piece(piece, cutter, cache, block_size, tails if own else BLOCK, beside)
        compressed = False
        try:
            stored = store_piece(piece, cutter, cache, block_size, tails if own else BLOCK, beside, shares)
            compressed = stored.segment is not None
        finally:
            shares.finish(piece.key, compressed=compressed)
        return stored

    begin = partial(_begin, threads=lambda batch: pool.submit(work, batch), ahead=ahead, special=special)
    running: deque[tuple[int, Running]] = deque()
    in_flight = 0
    for size, batch in _batches(pieces, ahead):
        while running and in_flight + size > IN_FLIGHT:
            done, future = running.popleft()
            yield from future.result()
            in_flight -= done
        while (begun := begin(batch, wait=bool(running))) is None:
            done, future = running.popleft()
            yield from future.result()
            in_flight -= done
        running.append((size, begun))
        in_flight += size
    while running:
        yield from running.popleft()[1].result()
    if ahead is not None and ahead.crew is not None:
        ahead.crew.finish()


class Running(Protocol):
    """A batch in progress."""

    def result(self) -> list[Stored]:
        """Wait for the result. Raises what went wrong."""
        ...


class _Started(NamedTuple):
    """A piece that got a head start, as a batch of its own."""

    ahead: Ahead
    piece: Piece
    otherwise: Callable[[list[Piece]], Running]

    def result(self) -> list[Stored]:
        stored = self.ahead.take(self.piece)
        return [stored] if stored is not None else self.otherwise([self.piece]).result()


def _begin(
    batch: list[Piece],
    threads: Callable[[list[Piece]], Running],
    ahead: Ahead | None,
    special: Mapping[Node, CutRules | None],
    *,
    wait: bool,
) -> Running | None:
    """Give a batch to the processes of `ahead`, if it has some and they can do it, else to threads. Return None if
    `wait` allows waiting for room in the processes' memory."""
    if ahead is None or ahead.crew is None:
        return threads(batch)
    if len(batch) == 1 and batch[0].twin is None and ahead.has(batch[0]):
        return _Started(ahead, batch[0], threads)
    if not may_be_sent(batch) or (special and any(piece.node in special for piece in batch)):
        return threads(batch)
    ahead.crew.begin_all()
    begun: Running | None = ahead.crew.submit(batch)
    return begun if begun is not None or wait else threads(batch)


def pieces_of(files: Iterable[Node], twins: dict[Node, Node], *, tails: Tails = BLOCK) -> Iterator[Piece]:
    """Yield each file's pieces, in order. Twins, and with ALL every file, are single pieces."""
    for node in files:
        if node.size <= PIECE or node in twins or tails is ALL:
            yield Piece(node, 0, node.size, twins.get(node))
            continue
        for offset in range(0, node.size, PIECE):
            yield Piece(node, offset, min(PIECE, node.size - offset))


def may_be_sent(pieces: Iterable[Piece]) -> bool:
    """Whether the pieces depend only on host files, which other processes can read."""
    for piece in pieces:
        if piece.packed is not None or piece.old or type(piece.node.inode.content) is not FileContent:
            return False
    return True


def _batches(pieces: Iterable[Piece], ahead: Ahead | None) -> Iterator[tuple[int, list[Piece]]]:
    """Yield (bytes, pieces) of each task. A piece that processes have already started is a task by itself."""
    batch: list[Piece] = []
    size = 0
    begun = ahead if ahead is not None and ahead.crew is not None else None
    for piece in pieces:
        if begun is not None and piece.node.size >= begun.least and piece.twin is None and begun.has(piece):
            if batch:
                yield size, batch
                batch, size = [], 0
            yield 0, [piece]
            continue
        cost = 0 if piece.twin else piece.length
        if batch and size + cost > BATCH:
            yield size, batch
            batch, size = [], 0
        batch.append(piece)
        size += cost
    if batch:
        yield size, batch
