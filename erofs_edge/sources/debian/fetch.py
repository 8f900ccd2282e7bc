# SPDX-License-Identifier: Apache-2.0
"""Locked packages into the cache: a bounded pool of downloads, each checked, each resumed where it broke off."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

from erofs_edge.errors import MirrorError, PackagesGoneError, VerificationError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.cache import CHUNK, Cache, write_error
from erofs_edge.sources.debian.download import Client, GoneError, check_scheme
from erofs_edge.sources.debian.mirror import VARIABLE, Mirror

__all__ = ["Cache", "fetch"]

CONNECTIONS = 4
ATTEMPTS = 3  # that bring no byte, one after the other
PAUSE = 0.5  # seconds before the second attempt; twice that before the third

Progress = Callable[[int, int], None]
"""(bytes that are there, bytes in all) of the packages that were not in the cache"""


def fetch(
    packages: Iterable[LockedPackage],
    mirror: Mirror | Callable[[], Mirror],
    cache: Cache,
    progress: Progress | None = None,
    *,
    connections: int = CONNECTIONS,
) -> dict[str, Path]:
    """The .deb of each package (name → file in the cache). What is cached costs no network.

    `mirror` may be a function, which is called only if something has to be fetched. Raises VerificationError
    where a file has another hash than the lock says, MirrorError where the mirror fails (what has arrived is
    kept and used by the next call), and PackagesGoneError naming all packages that the mirror no longer has.
    """
    wanted = {package.sha256: package for package in packages}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        there = dict(zip(wanted, pool.map(lambda p: _cached(cache, p), wanted.values()), strict=True))
    missing = [package for digest, package in wanted.items() if there[digest] is None]
    if missing:
        source = mirror if isinstance(mirror, Mirror) else mirror()
        there.update(_Downloads(missing, source, cache, progress).run(connections))
    return {package.name: path for digest, package in wanted.items() if (path := there[digest]) is not None}


def _cached(cache: Cache, package: LockedPackage) -> Path | None:
    path = cache.blob(package.sha256)
    if path is not None and path.stat().st_size != package.size:
        raise VerificationError(
            f"{package.name} {package.version}: the lock says {package.size} bytes and a hash of"
            f" {path.stat().st_size} bytes",
            hint="the lock file was edited: make it again with `erofs-edge lock`",
        )
    return path


class _Downloads:
    """One call of `fetch`: what its threads share."""

    def __init__(self, packages: list[LockedPackage], mirror: Mirror, cache: Cache, progress: Progress | None) -> None:
        self.packages = packages
        self.mirror = mirror
        self.cache = cache
        self.progress = progress
        self.client = Client()
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.have: dict[str, int] = {}
        self.total = sum(package.size for package in packages)

    def run(self, connections: int) -> dict[str, Path]:
        pool = ThreadPoolExecutor(connections)
        try:
            # large ones first: none of them is left alone at the end
            order = sorted(self.packages, key=lambda package: (-package.size, package.name))
            jobs = {pool.submit(self.one, package): package for package in order}
            finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in finished:
                job.result()
        finally:
            self.stop.set()
            self.client.abort()
            pool.shutdown(cancel_futures=True)
            self.client.close()
        gone = sorted(f"{package.name} {package.version}" for job, package in jobs.items() if job.result() is None)
        if gone:
            raise PackagesGoneError(
                gone,
                hint="update the lock with `erofs-edge lock`, or name an archive that keeps old versions"
                f" in {VARIABLE}",
            )
        return {package.sha256: path for job, package in jobs.items() if (path := job.result()) is not None}

    def one(self, package: LockedPackage) -> Path | None:
        """Fetch one package; None where the mirror does not have it."""
        uri = self.mirror.uri(package.archive, package.path)
        check_scheme(uri)
        part = self.cache.partial_path(package.sha256)
        try:
            with self._locked(part, package) as file:
                if file is None:
                    self._count(package, package.size)
                    return self.cache.blob_path(package.sha256)
                if file.seek(0, os.SEEK_END):
                    # what an earlier run left may be damaged: then the whole file is fetched once more
                    with contextlib.suppress(VerificationError):
                        return self._complete(file, uri, package)
                return self._complete(file, uri, package)
        except OSError as error:
            raise write_error(error, part) from error

    @contextlib.contextmanager
    def _locked(self, part: Path, package: LockedPackage) -> Iterator[BinaryIO | None]:
        """The part file, locked against other processes; None where another one finished it meanwhile."""
        while True:
            with part.open("a+b") as file:
                while not _try_lock(file):
                    if self.stop.wait(0.1):
                        raise _stopped(package)
                if self.cache.blob(package.sha256) is not None:
                    self.cache.drop(part)
                    yield None
                    return
                if _is_at(file, part):
                    yield file
                    return

    def _complete(self, file: BinaryIO, uri: str, package: LockedPackage) -> Path | None:
        """Bring a part file to its end, over several attempts, and make it a blob."""
        failures = 0
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                self._append(file, uri, package)
                return self._finish(file, package)
            except GoneError:
                return None
            except MirrorError as error:
                failures = 1 if file.seek(0, os.SEEK_END) > before else failures + 1
                if failures >= ATTEMPTS or self.stop.wait(PAUSE * failures):
                    hint = error.hint or "what has arrived is kept: run the same command again"
                    message = f"{package.name} {package.version}: {error.message}"
                    raise MirrorError(message, where=error.where, hint=hint) from error

    def _append(self, file: BinaryIO, uri: str, package: LockedPackage) -> None:
        """Download what is missing at the end of a part file."""
        have = file.seek(0, os.SEEK_END)
        if have >= package.size:
            return
        start, pieces = self.client.read(uri, have)
        if start != have:
            file.truncate(start)
            have = start
        for piece in pieces:
            if self.stop.is_set():
                raise _stopped(package)
            have += len(piece)
            if have > package.size:
                file.truncate(0)
                raise _wrong(package, f"the mirror's file is larger than the {package.size} bytes of the lock")
            file.write(piece)
            self._count(package, have)
        if have < package.size:
            file.truncate(0)
            raise _wrong(package, f"the mirror's file has {have} bytes, the lock says {package.size}")

    def _finish(self, file: BinaryIO, package: LockedPackage) -> Path:
        file.seek(0)
        digest = hashlib.sha256()
        while piece := file.read(CHUNK):
            digest.update(piece)
        if digest.hexdigest() != package.sha256:
            file.truncate(0)
            raise _wrong(package, f"sha256 is {digest.hexdigest()}, the lock says {package.sha256}")
        final = self.cache.blob_path(package.sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        self.cache.partial_path(package.sha256).replace(final)
        self._count(package, package.size)
        return final

    def _count(self, package: LockedPackage, have: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.have[package.sha256] = have
                self.progress(sum(self.have.values()), self.total)


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has that name: who held the lock before may have renamed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _stopped(package: LockedPackage) -> MirrorError:
    return MirrorError("the download was stopped", where=package.name)


def _wrong(package: LockedPackage, message: str) -> VerificationError:
    return VerificationError(
        message,
        where=f"{package.archive}/{package.path}",
        hint="the mirror or something on the way to it is at fault, or the lock was edited",
    )
