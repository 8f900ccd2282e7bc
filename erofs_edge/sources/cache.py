# SPDX-License-Identifier: Apache-2.0
"""The content-addressed cache: downloads and what is unpacked from them.

ROOT/blobs/ab/SHA256        downloaded files, named by their own hash
ROOT/partial/SHA256         downloads in progress or interrupted
ROOT/derived/KIND/ab/KEY    what was made from a blob (KEY is the blob's hash); can be made again at any time
ROOT/tmp/                   files being written

Files get their final name only by a rename, so processes may share the cache and may be killed at any point. What is
read is checked: a blob against its name, a derived file against the hash recorded by its maker.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from erofs_edge.errors import CapacityError, ErofsEdgeError, SourceError
from erofs_edge.homes import user_folder

VARIABLE = "EROFS_EDGE_CACHE"
_ELSEWHERE = f"set {VARIABLE} to a folder that you can read and write"
CHUNK = 1 << 20  # bytes per read when whole files are hashed or copied
STALE = 3600  # seconds after which a temporary file counts as abandoned

Record = TypeVar("Record", bound=msgspec.Struct)

_decoders: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}
_describing = threading.Lock()


def cache_root() -> Path:
    """EROFS_EDGE_CACHE, or a folder in the user's cache. Raises ErofsEdgeError if the user has no home."""
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    return user_folder("cache", VARIABLE) / "sources"


class Cache:
    """The cache under one root folder (default: `cache_root()`), created on first use."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root()
        self.kept: dict[tuple[str, object], Any] = {}
        """(kind, key) → what was parsed from files with fixed hashes, as long as this object lives; read-only"""
        self._proved: dict[Path, tuple[int, int, int]] = {}
        self._swept = False

    def blob_path(self, sha256: str) -> Path:
        """Where the blob with that hash (64 hex digits) is or would be."""
        return self.root / "blobs" / sha256[:2] / sha256

    def partial_path(self, sha256: str) -> Path:
        """Where the unfinished download of that blob is or would be; its folder is created."""
        path = self.root / "partial" / sha256
        with self._writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def derived_path(self, kind: str, key: str) -> Path:
        """Where a derived file is or would be."""
        return self.root / "derived" / kind / key[:2] / key

    def blob(self, sha256: str) -> Path | None:
        """The blob with that hash, or None. A blob that no longer matches its hash is removed."""
        return self.proved(self.blob_path(sha256), sha256)

    def proved(self, path: Path, sha256: str) -> Path | None:
        """A file of the cache if it has that hash, else None; a file with another hash is removed.

        Each file is read once in the lifetime of this object, unless it changes.
        """
        try:
            info = path.stat()
            stamp = (info.st_ino, info.st_size, info.st_mtime_ns)
            if self._proved.get(path) == stamp:
                return path
            right = file_digest(path) == sha256
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(path), hint=_ELSEWHERE) from error
        if not right:
            self.drop(path)
            return None
        self._proved[path] = stamp
        return path

    def digest(self, path: Path) -> str:
        """The sha256 of any file, in hex; free for a blob that this object has checked."""
        if path in self._proved and path == self.blob_path(path.name):
            return path.name
        try:
            return file_digest(path)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error

    def drop(self, path: Path) -> None:
        """Remove a file of the cache if it exists."""
        self._proved.pop(path, None)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    def load_record(self, kind: str, key: str, shape: type[Record]) -> Record | None:
        """The value kept by `store_record`, or None if it is missing, damaged or of another type."""
        path = self.derived_path(kind, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=str(path), hint=_ELSEWHERE) from error
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            with contextlib.suppress(msgspec.MsgspecError):
                return _decoder(shape).decode(data[32:])
        self.drop(path)
        return None

    def store_record(self, kind: str, key: str, record: msgspec.Struct) -> None:
        """Keep a small value beside what it describes. Change `kind` when its meaning changes."""
        data = msgspec.msgpack.encode(record)
        with self.writing(self.derived_path(kind, key)) as file:
            file.write(hashlib.sha256(data).digest() + data)

    @contextlib.contextmanager
    def writing(self, final: Path) -> Iterator[BinaryIO]:
        """A temporary file that becomes `final` if the block ends without error, and is removed otherwise.

        Raises CapacityError if there is no space, SourceError if the folder cannot be written.
        """
        folder = self.root / "tmp"
        with self._writable(final):
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep(folder)
            descriptor, name = tempfile.mkstemp(dir=folder)
            os.close(descriptor)
            try:
                with Path(name).open("wb") as file:  # opened by name, so that the file object knows its name
                    yield file
                final.parent.mkdir(parents=True, exist_ok=True)
                Path(name).replace(final)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    Path(name).unlink()
                raise

    @contextlib.contextmanager
    def _writable(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(error, path) from error

    def _sweep(self, folder: Path) -> None:
        """Remove what killed processes have left."""
        if self._swept:
            return
        self._swept = True
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - STALE:
                    path.unlink()


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hex. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(error: OSError, path: Path) -> ErofsEdgeError:
    """The error for a failed write below the cache."""
    hint = f"free some space, or set {VARIABLE} to a folder that has more"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError("no space left for the cache", where=str(path), hint=hint)
    return SourceError(f"cannot write: {error.strerror or error}", where=str(path), hint=hint)


def _decoder(shape: type[Record]) -> msgspec.msgpack.Decoder[Record]:
    """The decoder of a type, made by one thread while others wait.

    msgspec 0.22 attaches its description of a type to the class before it is complete, and runs Python code meanwhile:
    another thread that decodes the same type then follows a null pointer (signal 11).
    """
    with _describing:
        decoder = _decoders.get(shape)
        if decoder is None:
            decoder = _decoders[shape] = msgspec.msgpack.Decoder(shape)
    return cast("msgspec.msgpack.Decoder[Record]", decoder)
