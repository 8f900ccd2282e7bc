# SPDX-License-Identifier: Apache-2.0
"""Download files of known size and hash into the cache: a bounded pool of downloads, each checked, each resumed after
an interruption, shared with other processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from erofs_edge.errors import MirrorError, VerificationError
from erofs_edge.locks import lock
from erofs_edge.sources.cache import CHUNK, Cache, write_error
from erofs_edge.sources.http import Body, GoneError

CONNECTIONS = 4
ATTEMPTS = 3  # in a row without receiving a byte
PAUSE = 0.5  # seconds before the second attempt; twice that before the third

Progress = Callable[[int, int], None]
"""(bytes received, total bytes) of what was not in the cache"""


class Item(NamedTuple):
    """label: name for errors. where: its place, for errors about its content. peer: who supplies it, in words. against:
    where size and hash come from, in words."""

    label: str
    uri: str
    where: str
    size: int
    sha256: str
    peer: str = "the mirror"
    against: str = "the lock"


class Reader(Protocol):
    """What `transfer` reads from: `http.Client`, or a registry."""

    def read(self, uri: str, start: int) -> Body:
        """As Client.read."""
        ...

    def abort(self) -> None:
        """As Client.abort."""
        ...

    def close(self) -> None:
        """As Client.close."""
        ...


def transfer(
    items: list[Item], client: Reader, cache: Cache, progress: Progress | None = None, *, connections: int = CONNECTIONS
) -> dict[str, Path | None]:
    """The blob of each item, by sha256; None if the peer does not have it. The client is closed afterwards.

    Raises VerificationError if content has another hash or size, MirrorError if the peer fails (what has arrived is
    kept and used by the next call).
    """
    return _Transfer(items, client, cache, progress).run(connections)


class _Transfer:
    """One call of `transfer`: what its threads share."""

    def __init__(self, items: list[Item], client: Reader, cache: Cache, progress: Progress | None) -> None:
        self.items = items
        self.cache = cache
        self.progress = progress
        self.client = client
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.have: dict[str, int] = {}
        self.total = sum(item.size for item in items)

    def run(self, connections: int) -> dict[str, Path | None]:
        pool = ThreadPoolExecutor(connections)
        try:
            # large ones first, so that none runs alone at the end
            order = sorted(self.items, key=lambda item: (-item.size, item.label))
            jobs = {pool.submit(self.one, item): item for item in order}
            finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in finished:
                job.result()
        finally:
            self.stop.set()
            self.client.abort()
            pool.shutdown(cancel_futures=True)
            self.client.close()
        return {item.sha256: job.result() for job, item in jobs.items()}

    def one(self, item: Item) -> Path | None:
        """Download one item; None if the peer does not have it."""
        part = self.cache.partial_path(item.sha256)
        try:
            with self._locked(part, item) as file:
                if file is None:
                    self._count(item, item.size)
                    return self.cache.blob_path(item.sha256)
                if file.seek(0, os.SEEK_END):
                    # an earlier run's partial file may be damaged: the whole file is then downloaded once more
                    with contextlib.suppress(VerificationError):
                        return self._complete(file, item)
                return self._complete(file, item)
        except OSError as error:
            raise write_error(error, part) from error

    @contextlib.contextmanager
    def _locked(self, part: Path, item: Item) -> Iterator[BinaryIO | None]:
        """The partial file, locked against other processes; None if another one completed it meanwhile."""
        while True:
            with part.open("a+b") as file:
                while not _try_lock(file):
                    if self.stop.wait(0.1):
                        raise _stopped(item)
                if self.cache.blob(item.sha256) is not None:
                    self.cache.drop(part)
                    yield None
                    return
                if _is_at(file, part):
                    yield file
                    return

    def _complete(self, file: BinaryIO, item: Item) -> Path | None:
        """Complete a partial file, in several attempts, and make it a blob."""
        failures = 0
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                self._append(file, item)
                return self._finish(file, item)
            except GoneError:
                return None
            except MirrorError as error:
                failures = 1 if file.seek(0, os.SEEK_END) > before else failures + 1
                if failures >= ATTEMPTS or self.stop.wait(PAUSE * failures):
                    hint = error.hint or "run the same command again: what has arrived is kept"
                    message = f"{item.label}: {error.message}"
                    raise MirrorError(message, where=error.where, hint=hint) from error

    def _append(self, file: BinaryIO, item: Item) -> None:
        """Download what is missing at the end of a partial file."""
        have = file.seek(0, os.SEEK_END)
        if have >= item.size:
            return
        start, pieces = self.client.read(item.uri, have)
        if start != have:
            file.truncate(start)
            have = start
        for piece in pieces:
            if self.stop.is_set():
                raise _stopped(item)
            have += len(piece)
            if have > item.size:
                file.truncate(0)
                raise _wrong(item, f"{item.peer}'s file is larger than the {item.size} bytes of {item.against}")
            file.write(piece)
            self._count(item, have)
        if have < item.size:
            file.truncate(0)
            raise _wrong(item, f"{item.peer}'s file has {have} bytes, {item.against} says {item.size}")

    def _finish(self, file: BinaryIO, item: Item) -> Path:
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(CHUNK):
            digest.update(piece)
        if digest.hexdigest() != item.sha256:
            file.truncate(0)
            raise _wrong(item, f"sha256 is {digest.hexdigest()}, {item.against} says {item.sha256}")
        final = self.cache.blob_path(item.sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        self.cache.partial_path(item.sha256).replace(final)
        self._count(item, item.size)
        return final

    def _count(self, item: Item, have: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.have[item.sha256] = have
                self.progress(sum(self.have.values()), self.total)


def _try_lock(file: BinaryIO) -> bool:
    try:
        lock(file.fileno(), wait=False)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has that name: the previous lock holder may have renamed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _stopped(item: Item) -> MirrorError:
    return MirrorError("the download was stopped", where=item.label)


def _wrong(item: Item, message: str) -> VerificationError:
    return VerificationError(
        message,
        where=item.where,
        hint=f"{item.peer}, or something on the way to it, changed the data; or {item.against} was edited",
    )
