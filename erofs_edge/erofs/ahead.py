# SPDX-License-Identifier: Apache-2.0
"""A head start: compress large files while the rest of the tree is still being scanned.

Finding fourteen thousand files and planning their inodes keeps one processor busy for a few tenths of a second while
the others idle. The compressed form of a piece depends only on its bytes and the options, so it can be made before its
place in the image is known. How far the head start gets does not change a byte of the image.

If the tree is large enough, processes are forked here for all reading and compressing (see crew.py): this is the only
moment before any threads exist.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from erofs_edge.erofs.codings import choose_codings
from erofs_edge.erofs.crew import Crew, Ticket
from erofs_edge.erofs.cut_rules import TAILS, Tails
from erofs_edge.erofs.piece import Piece, Stored, Worker, store_piece
from erofs_edge.erofs.pipeline import pieces_of
from erofs_edge.erofs.plan import Node, Plan
from erofs_edge.errors import SourceError
from erofs_edge.forks import may_fork
from erofs_edge.threads import Threads
from erofs_edge.tree import Content, FileContent, Inode

if TYPE_CHECKING:
    from concurrent.futures import Future

    from erofs_edge.erofs.options import WriteOptions

LARGE = 256 << 10  # bytes; smaller files are not worth a separate task
# bytes to start on; a codec without levels manages more, and so does a cache
SLOW_MOST, FAST_MOST = 32 << 20, 96 << 20
WORTH_FORKING = 16 << 20  # bytes of files


class HeadStart:
    """Starts on the files that it is offered, using the threads that later continue with everything else.

    Only what is certain is started: nothing with rules by path, or if everything goes into the packed inode. Raises
    UsageError as `choose_codings` does.
    """

    def __init__(self, options: WriteOptions) -> None:
        self.pool = Threads(options.workers)
        rules = choose_codings(Plan([], 0, 0, Counter()), options).default
        self._rules = None if options.rules else rules
        self._tails = TAILS[options.fragments, options.ztailpacking]
        self._options = options
        self._local = Worker(options.meter)
        slow = rules is not None and rules.level is not None and options.cache is None
        self._left = SLOW_MOST if slow else FAST_MOST
        if self._tails is Tails.ALL:
            self._rules = None
        self._sizes: set[int] = set()
        self._started: dict[int, tuple[Content, dict[int, Future[Stored] | Ticket]]] = {}
        self.crew: Crew | None = None
        self._may_fork = self._rules is not None and options.processes > 1 and not options.dedupe and may_fork()
        self._seen = 0
        self._waiting: list[tuple[Content, Iterable[Piece]]] = []

    @property
    def least(self) -> int:
        """Size in bytes of the smallest file that is started early."""
        return LARGE

    def __enter__(self) -> HeadStart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown()
        if self.crew is not None and kind is None:
            self.crew.close()
        elif self.crew is not None:
            self.crew.kill()

    def offer(self, content: Content) -> None:
        """Offer the content of a host file. If an earlier file has the same size, it is skipped: the two may be
        equal."""
        size = content.size
        self._seen += size
        if self._may_fork and self._seen >= WORTH_FORKING:
            self._fork()
        if self._rules is None or not LARGE <= size <= self._left or size in self._sizes:
            return
        if not isinstance(content, FileContent) or content.start:
            return
        self._sizes.add(size)
        self._left -= size
        node = Node(Inode(stat.S_IFREG, content=content), os.fsencode(content.path), 0, None, size=size)
        pieces = pieces_of([node], {})
        if self._may_fork:
            self._waiting.append((content, pieces))
        else:
            self._start(content, pieces)

    def _start(self, content: Content, pieces: Iterable[Piece]) -> None:
        started: dict[int, Future[Stored] | Ticket] = {}
        for piece in pieces:
            future = self.crew.submit([piece]) if self.crew is not None else self.pool.submit(self._store, piece)
            if future is not None:
                started[piece.offset] = future
        self._started[id(content)] = content, started  # the object is kept, so that its id() is not reused

    def has(self, piece: Piece) -> bool:
        """Whether `take` would return the piece."""
        started = self._started.get(id(piece.node.inode.content))
        return started is not None and piece.offset in started[1]

    def take(self, piece: Piece) -> Stored | None:
        """Return the result for a piece if it was started, waiting for it if necessary. None also if that failed: the
        caller then tries again and gets the error."""
        started = self._started.get(id(piece.node.inode.content))
        future = started[1].pop(piece.offset, None) if started is not None else None
        if future is None:
            return None
        try:
            result = future.result()
        except SourceError:
            return None
        stored = result[0] if isinstance(result, list) else result
        return stored._replace(piece=piece) if stored.piece.length == piece.length else None

    def _store(self, piece: Piece) -> Stored:
        options = self._options
        assert self._rules is not None  # noqa: S101 - nothing is started without
        beside = options.block_size if options.inline_tails else 0
        cutter = self._local.cutter(self._rules)
        return store_piece(piece, cutter, options.cache, options.block_size, self._tails, beside)

    def _fork(self) -> None:
        """Switch from threads to processes, if that is still possible, and start on the files waiting for this."""
        self._may_fork = False
        options = self._options
        if may_fork():
            # with a profile or a baseline, each extent of a file may be placed separately
            joined = 0 if options.profile or options.baseline is not None else options.block_size
            small = options.block_size if self._tails is Tails.BLOCK else 0
            if self._rules is not None:
                self._local.cutter(self._rules)  # open and check codecs once for all processes
            how = options.processes, options.cache, options.meter, joined, self._local.restart, small
            with suppress(OSError):
                self.crew = Crew(self._store, *how)
        waiting, self._waiting = self._waiting, []
        for content, pieces in waiting:
            self._start(content, pieces)
