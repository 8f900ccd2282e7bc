# SPDX-License-Identifier: Apache-2.0
"""A file in a registry, read in parts: what is read is fetched, checked against the file's table of hashes, and cached.

The manifest covers the table, and the table each block of 32 KiB. Blocks are cached under their hashes, so the next
start, and the next version, find them. Several threads may read; they wait for what another one is fetching.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from erofs_edge.errors import ErofsEdgeError, MirrorError, SourceError, VerificationError
from erofs_edge.registry.artifact import BLOCK, HASH, Piece, Stored
from erofs_edge.registry.remote import Remote
from erofs_edge.sources.cache import Cache

PATIENCE = 60.0  # seconds for which a registry may be unreachable
PAUSE = 0.2  # seconds before the second attempt; longer before each further one
PAUSE_MAX = 5.0
CONNECTIONS = 4
MEMORY = 512  # blocks
RUN = 32  # maximum blocks per request: others wait for it
_ZEROS = bytes(BLOCK)

Say = Callable[[str], None]


class LazyFile:
    """One file of an artifact. `size` in bytes; `fetched_bytes`, `requests`: statistics of the registry's use.

    Raises SourceError if the file has no table of hashes, VerificationError if the table does not match the manifest,
    MirrorError if the registry fails.
    """

    def __init__(self, file: Stored, remote: Remote, cache: Cache, *, say: Say = lambda _: None) -> None:
        self.name, self.size = file.name, file.size
        self.requests = self.fetched_bytes = 0
        self._where = f"{remote.reference}: {file.name}"
        self._remote, self._cache, self._say = remote, cache, say
        self._pieces = _by_block(file, self._where)
        self._table = self._load_table(file)
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._busy: dict[int, Future[bytes]] = {}
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(CONNECTIONS, "registry")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file. Raises VerificationError for content other than what was pushed, MirrorError if the
        registry is unreachable for longer than PATIENCE, or if `close` was called."""
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = b"".join(self._blocks(first, last))
        start = offset - first * BLOCK
        return data[start : start + length]

    def is_hole(self, block: int) -> bool:
        """Whether a block is all zeros."""
        return not any(self._hash(block))

    def close(self) -> None:
        """Make all reads in progress fail."""
        self._closed.set()
        self._remote.abort()
        self._pool.shutdown(cancel_futures=True)

    def _blocks(self, first: int, last: int) -> list[bytes]:
        """The contents of blocks [first, last): from memory, from the cache, and the rest from the registry."""
        found: dict[int, bytes] = {}
        mine: dict[int, Future[bytes]] = {}
        waiting: dict[int, Future[bytes]] = {}
        with self._lock:
            for number in range(first, last):
                if self.is_hole(number):
                    found[number] = _ZEROS[: self._length(number)]
                elif number in self._recent:
                    self._recent.move_to_end(number)
                    found[number] = self._recent[number]
                elif number in self._busy:
                    waiting[number] = self._busy[number]
                else:
                    mine[number] = self._busy[number] = Future()
        try:
            self._get(mine)
        except BaseException as error:
            for future in mine.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            self._settle(mine)
        found |= {number: future.result() for number, future in (mine | waiting).items()}
        return [found[number] for number in range(first, last)]

    def _settle(self, mine: dict[int, Future[bytes]]) -> None:
        """Mark these as no longer in progress; what has arrived stays in memory for a while."""
        with self._lock:
            for number, future in mine.items():
                del self._busy[number]
                if future.exception() is None:
                    self._recent[number] = future.result()
            while len(self._recent) > MEMORY:
                self._recent.popitem(last=False)

    def _get(self, wanted: dict[int, Future[bytes]]) -> None:
        """Fetch these, adjacent ones in one request."""
        runs: list[list[int]] = []
        for number in sorted(wanted):
            if (data := self._kept(number)) is not None:
                wanted[number].set_result(data)
                continue
            run = runs[-1] if runs else []
            if run and number == run[-1] + 1 and len(run) < RUN and self._pieces[number] is self._pieces[run[0]]:
                run.append(number)
            else:
                runs.append([number])
        # by a few threads, whose connections stay open however many clients come and go
        for job in [self._pool.submit(self._fetch, run, wanted) for run in runs]:
            job.result()

    def _fetch(self, run: list[int], wanted: dict[int, Future[bytes]]) -> None:
        piece = self._pieces[run[0]]
        start = run[0] * BLOCK
        length = sum(map(self._length, run))
        data = self._patiently(piece, start - piece.offset, length)
        for number in run:
            block = data[number * BLOCK - start :][: self._length(number)]
            digest = self._hash(number)
            if hashlib.sha256(block).digest() != digest:
                raise VerificationError(
                    f"block {number} is not what was pushed: its sha256 is not {digest.hex()}", where=self._where,
                    hint="the registry, or something on the way to it, changed the data",
                )  # fmt: skip
            # if there is no room for it, it is fetched again when needed
            with contextlib.suppress(ErofsEdgeError), self._cache.writing(self._cache.blob_path(digest.hex())) as out:
                out.write(block)
            wanted[number].set_result(block)

    def _patiently(self, piece: Piece, start: int, length: int) -> bytes:
        """A range of a blob; waits for an unreachable registry."""
        deadline, pause, told = time.monotonic() + PATIENCE, PAUSE, False
        while True:
            try:
                data = self._remote.range(piece.sha256, start, length)
            except MirrorError as error:
                if self._closed.is_set() or time.monotonic() + pause > deadline:
                    raise
                if not told:
                    self._say(f"{error.message}; waiting")
                told = True
                if self._closed.wait(pause):
                    raise
                pause = min(2 * pause, PAUSE_MAX)
                continue
            if told:
                self._say("the registry is back")
            with self._lock:
                self.requests += 1
                self.fetched_bytes += length
            return data

    def _kept(self, number: int) -> bytes | None:
        path = self._cache.blob(self._hash(number).hex())
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        return data if len(data) == self._length(number) else None

    def _load_table(self, file: Stored) -> bytes:
        if not file.blocks:
            raise SourceError(
                "it has no table of hashes, so parts of it cannot be checked", where=self._where,
                hint="erofs-edge pull fetches all of it; erofs-edge push writes a table for files of 1 MiB or more",
            )  # fmt: skip
        size = -(-file.size // BLOCK) * HASH
        kept = self._cache.blob(file.blocks)
        data = kept.read_bytes() if kept is not None else self._remote.blob(file.blocks, size)
        if hashlib.sha256(data).hexdigest() != file.blocks or len(data) != size:
            raise VerificationError("its table of hashes is not the manifest's", where=self._where)
        if kept is None:
            with contextlib.suppress(ErofsEdgeError), self._cache.writing(self._cache.blob_path(file.blocks)) as out:
                out.write(data)
        for number in range(len(data) // HASH):
            if any(data[number * HASH :][:HASH]) and number not in self._pieces:
                raise SourceError(f"no piece has its block {number}", where=self._where)
        return data

    def _hash(self, number: int) -> bytes:
        return self._table[number * HASH : number * HASH + HASH]

    def _length(self, number: int) -> int:
        return min(BLOCK, self.size - number * BLOCK)


def _by_block(file: Stored, where: str) -> dict[int, Piece]:
    """The piece that contains each block whole. Raises SourceError if pieces cut blocks."""
    found: dict[int, Piece] = {}
    for piece in file.pieces:
        end = piece.offset + piece.size
        if piece.offset % BLOCK or (end % BLOCK and end != file.size):
            raise SourceError("its pieces are no multiples of 32 KiB", where=where)
        found |= dict.fromkeys(range(piece.offset // BLOCK, -(-end // BLOCK)), piece)
    return found
