# SPDX-License-Identifier: Apache-2.0
"""Send the contents of all files, and symlink targets, through the pipeline to the image."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from erofs_edge.erofs.chunks import ChunkStore
from erofs_edge.erofs.codings import Codings
from erofs_edge.erofs.cut_rules import TAILS, Tails
from erofs_edge.erofs.files import FileStore
from erofs_edge.erofs.layout import Packing
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Sink
from erofs_edge.erofs.packing import store_packed
from erofs_edge.erofs.piece import Stored
from erofs_edge.erofs.pipeline import pieces_of, store
from erofs_edge.erofs.plan import Node, Plan
from erofs_edge.erofs.repeats import Repeats, find_repeats
from erofs_edge.erofs.sharing import Shares
from erofs_edge.erofs.small import without_small
from erofs_edge.erofs.spool import Spool
from erofs_edge.erofs.twins import find_twins
from erofs_edge.threads import Threads

if TYPE_CHECKING:  # imported late, for builds with a baseline only
    from erofs_edge.erofs.baseline import Baseline

PROGRESS_STEPS = 2000  # a single file is usually too small to report


def store_contents(
    plan: Plan,
    codings: Codings,
    sink: Sink | Spool,
    options: WriteOptions,
    chunks: ChunkStore | None,
    after_hot: Callable[[], object] = lambda: None,
    baseline: Baseline | None = None,
    packing: Packing | None = None,
) -> FileStore:
    """Store all file data, using threads, and then what symlink targets need beyond their inodes.

    `after_hot` is called when exactly what the profile names has been stored. `packing` is told how far files are
    complete.
    """
    tails = TAILS[options.fragments, options.ztailpacking]
    beside = options.block_size if options.inline_tails else 0
    contents = list(plan.files)
    total = sum([node.size for node in contents])
    progress = _Progress(options.progress, total)
    pool = options.ahead.pool if options.ahead else Threads(options.workers)
    run = partial(store, pool=pool, options=options, special=codings.special)
    try:
        twins, repeats = _find_equal(contents, codings, pool, options)
        shares = Shares(repeats, options.block_size) if repeats.numbers else None
        files = FileStore(sink, codings, options, twins.values(), chunks, repeats, plan.apart)
        crew = options.ahead.crew if options.ahead else None
        rest: Iterable[Node] = contents
        if crew and packing and files.is_direct and beside and tails is Tails.BLOCK and not options.dedupe:
            rest = without_small(contents, options.block_size, progress.add)
        pieces = pieces_of(rest, twins, tails=tails)
        stream = run(pieces, rules=codings.default, tails=tails, beside=beside, shares=shares, ahead=options.ahead)
        end_hot = partial(_end_hot, plan.hot, files, after_hot)
        for stored in _after(plan.hot, stream, end_hot) if plan.hot else stream:
            if packing is not None and stored.piece.node.number >= packing.due:
                packing.advance(stored.piece.node.number)
            files.take(stored)
            progress.add(stored.piece.length - (stored.segment.fragment if stored.segment else 0))
        if packing is not None:
            packing.advance(len(plan.nodes) + 1)
        for stored in store_packed(plan, files, codings, options, run, baseline):
            progress.add(stored.piece.length)
        progress.add(total)
    finally:
        pool.shutdown()
    files.size = total
    hot = set(plan.hot)
    _take_symlinks([node for node in plan.nodes if node not in hot] if hot else plan.nodes, files)
    plan.incompat |= files.features | (chunks.features if chunks else 0)
    return files


class _Progress:
    """Reports progress of `total` stored bytes, no more often than useful."""

    def __init__(self, call: Callable[[int, int], object] | None, total: int) -> None:
        self._call, self._total = call, total
        self._done, self._due = 0, total // PROGRESS_STEPS

    def add(self, size: int) -> None:
        """Count more bytes. The total may never be reached, since equal parts are stored once; adding all of it ends
        the count."""
        self._done = min(self._total, self._done + size)
        if self._call and (self._done > self._due or self._done == self._total):
            self._call(self._done, self._total)
            self._due = self._done + self._total // PROGRESS_STEPS


def _find_equal(
    contents: list[Node], codings: Codings, pool: Threads, options: WriteOptions
) -> tuple[dict[Node, Node], Repeats]:
    """Find files with the content of earlier ones, and what the others repeat of earlier ones, as far as the options
    make use of either."""
    tails = TAILS[options.fragments, options.ztailpacking]
    # a file smaller than a block can need one, too, if it does not fit next to its inode
    larger_than = 0 if tails is Tails.ALL else options.block_size // 2 if options.dedupe else options.block_size
    twins: dict[Node, Node] = {}
    if (least := 0 if options.shares else codings.least_twin) is not None:
        larger_than = max(larger_than, least) if tails is Tails.BLOCK else larger_than
        twins = find_twins(contents, codings, pool, larger_than=larger_than)
    repeats = Repeats()
    if options.dedupe and tails is not Tails.ALL:
        originals = (node for node in contents if node not in twins)
        whole = options.pcluster_size if tails is Tails.FRAGMENT else 0
        repeats = find_repeats(originals, codings, pool, block_size=options.block_size, larger_than=whole)
    return twins, repeats


def _after(nodes: Iterable[Node], stream: Iterable[Stored], call: Callable[[], object]) -> Iterator[Stored]:
    """Yield the stream; call `call` after the nodes with which it begins."""
    left = set(nodes)
    for stored in stream:
        if left and stored.piece.node not in left:
            left.clear()
            call()
        yield stored
    if left:
        call()


def _end_hot(nodes: Iterable[Node], files: FileStore, after: Callable[[], object]) -> None:
    _take_symlinks(nodes, files)
    after()


def _take_symlinks(nodes: Iterable[Node], files: FileStore) -> None:
    for node in nodes:
        if node.inode.mode & 0o170000 == stat.S_IFLNK:
            files.take_symlink(node)
