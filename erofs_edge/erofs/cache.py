# SPDX-License-Identifier: Apache-2.0
"""Compressed data of earlier builds, keyed by the hash of content and cut rules.

A folder of numbered packs: NUMBER.pack holds payloads one after the other, NUMBER.index a 64-byte record for each: key
(sha256, 32 bytes), offset u64, length u32, crc32 of the payload u32, 12 zero bytes, crc32 of the 60 bytes before.

Packs only grow, under a lock, and payloads are written before their records. So readers need no lock, a killed build
leaves at most bytes without a record, and damaged data is a miss. The least recently used packs are removed when the
folder exceeds its limit. A cache that cannot be read or written slows a build down but never fails it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.locks import lock
from erofs_edge.positions import READ, pread

if TYPE_CHECKING:
    from pathlib import Path

RECORD = Struct("<32sQII12xI")
PACK_MAX = 64 << 20  # bytes; after a pack this large, a new one is started
PENDING_MAX = 8 << 20
LIMIT = 4 << 30
Chunk = bytes | memoryview


class _Place(NamedTuple):
    pack: int
    offset: int
    length: int
    crc: int


class CompressionCache:
    """`folder` is created when something is stored. `limit` in bytes. Safe for several threads and processes.

    `hits`, `misses` and `damaged` (misses because stored bytes are corrupt; the next build stores them anew) count
    since opening; `problem` is the last error from the operating system, if any.
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self.hits = self.misses = self.damaged = 0
        self.problem: OSError | None = None
        self._lock = threading.Lock()
        self._places: dict[bytes, _Place] | None = None
        self._packs: dict[int, int | None] = {}
        self._used: set[int] = set()
        self._pending: list[tuple[bytes, list[Chunk]]] = []
        self._pending_size = 0

    def __enter__(self) -> CompressionCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the payload stored under a key, or None."""
        places = self._places
        place = (places if places is not None else self._known()).get(key)
        data = self._read(place) if place is not None else None
        with self._lock:
            if data is None:
                self.misses += 1
                self.damaged += place is not None
            else:
                self.hits += 1
        return data

    def put(self, key: bytes, chunks: Sequence[Chunk]) -> None:
        """Store a payload. It is on disk at the latest after `close`."""
        with self._lock:
            self._pending.append((key, list(chunks)))
            self._pending_size += sum(map(len, chunks))
            if self._pending_size >= PENDING_MAX:
                self._store()

    def close(self) -> None:
        """Write what is pending, record which packs were used, remove the oldest beyond the limit."""
        with self._lock:
            self._store()
            for pack in self._used:
                with suppress(OSError):
                    os.utime(self._path(pack, "index"))
            for fd in self._packs.values():
                if fd is not None:
                    os.close(fd)
            self._packs.clear()
            self._used.clear()
            self._places = None

    def _path(self, pack: int, kind: str) -> Path:
        return self.folder / f"{pack:08d}.{kind}"

    def _known(self) -> dict[bytes, _Place]:
        with self._lock:
            if self._places is None:
                places: dict[bytes, _Place] = {}
                try:
                    for pack in self._numbers():
                        with suppress(FileNotFoundError):
                            places.update(_records(pack, self._path(pack, "index").read_bytes()))
                except OSError as error:
                    self.problem = error
                self._places = places  # set only when complete: others read it without the lock
            return self._places

    def _numbers(self) -> list[int]:
        with suppress(FileNotFoundError):
            return sorted(int(p.stem) for p in self.folder.glob("*.index") if p.stem.isdecimal())
        return []

    def _read(self, place: _Place) -> bytes | None:
        try:
            fd = self._packs[place.pack] if place.pack in self._packs else self._open(place.pack)
            data = pread(fd, place.length, place.offset) if fd is not None else b""
        except OSError as error:
            self.problem = error
            return None
        return data if len(data) == place.length and zlib.crc32(data) == place.crc else None

    def _open(self, pack: int) -> int | None:
        """Return the descriptor of a pack and mark it as used. Opening a pack is tried only once."""
        with self._lock:
            if pack not in self._packs:
                fd = None
                try:
                    fd = os.open(self._path(pack, "pack"), READ)
                finally:
                    self._packs[pack] = fd
                    self._used.add(pack)
            return self._packs[pack]

    def _store(self) -> None:
        """Append everything pending to the newest pack. The caller holds the lock."""
        pending, self._pending, self._pending_size = self._pending, [], 0
        if not pending:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.folder / "lock"):
                pack = self._pack_to_grow()
                with self._path(pack, "pack").open("ab") as handle:
                    records = [_append(handle.tell(), key, chunks, handle.write) for key, chunks in pending]
                _append_records(self._path(pack, "index"), records)
                self._evict(keep=pack)
        except OSError as error:
            self.problem = error

    def _pack_to_grow(self) -> int:
        # a pack has no index if its build was killed before the first record
        numbers = [int(p.stem) for p in self.folder.glob("*.pack") if p.stem.isdecimal()]
        newest = max(numbers, default=0)
        full = newest in numbers and self._path(newest, "pack").stat().st_size >= PACK_MAX
        return newest + full

    def _evict(self, *, keep: int) -> None:
        sizes = {int(p.stem): p.stat().st_size for p in self.folder.glob("*.pack") if p.stem.isdecimal()}
        total = sum(sizes.values())

        def last_use(pack: int) -> tuple[int, int]:
            with suppress(FileNotFoundError):
                return self._path(pack, "index").stat().st_mtime_ns, pack
            return 0, pack

        for pack in sorted(sizes.keys() - {keep}, key=last_use):
            if total <= self.limit:
                break
            self._path(pack, "index").unlink(missing_ok=True)
            with suppress(PermissionError):  # in use, where that prevents removal; it goes next time
                self._path(pack, "pack").unlink(missing_ok=True)
            total -= sizes[pack]


def cache_key(content_digest: bytes, rules: str) -> bytes:
    """Return the key for content, given as its sha256, cut by these rules."""
    return hashlib.sha256(rules.encode() + b"\0" + content_digest).digest()


def _records(pack: int, raw: bytes) -> Iterator[tuple[bytes, _Place]]:
    for at in range(0, len(raw) - RECORD.size + 1, RECORD.size):
        key, offset, length, crc, check = RECORD.unpack_from(raw, at)
        if zlib.crc32(raw[at : at + RECORD.size - 4]) == check:
            yield key, _Place(pack, offset, length, crc)


def _append(offset: int, key: bytes, chunks: Sequence[Chunk], write: Callable[[Chunk], int]) -> bytes:
    crc = length = 0
    for chunk in chunks:
        write(chunk)
        crc = zlib.crc32(chunk, crc)
        length += len(chunk)
    body = RECORD.pack(key, offset, length, crc, 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def _append_records(path: Path, records: Sequence[bytes]) -> None:
    with path.open("ab") as handle:
        if torn := handle.tell() % RECORD.size:
            handle.truncate(handle.tell() - torn)
        handle.write(b"".join(records))


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("ab") as handle:
        lock(handle.fileno())
        yield
