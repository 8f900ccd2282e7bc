# SPDX-License-Identifier: Apache-2.0
"""Everything that a build's bytes depend on, gathered and given one digest.

The digest covers the resolved manifests, their locks, the files of overlays and sources, the public key and the
version of our own formats. Equal digests mean equal outputs, so that an unchanged build has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erofs_edge import __version__
from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import Loaded, load_board, load_lock, load_system, lock_path
from erofs_edge.manifest.model import CONTENT_WORDS, Board, Lock, System
from erofs_edge.sources.debian.lock import check_lock

FORMAT_VERSION = 1
"""of the bytes that a build makes: any change to them in this project raises it (codec pins included)"""


@dataclass(frozen=True, slots=True)
class Locked:
    """A manifest with the lock that pins it."""

    loaded: Loaded[System]
    lock: Lock


@dataclass(frozen=True, slots=True)
class Inputs:
    """systems: by partition name. epoch: seconds since 1970, the one time of the build."""

    board: Loaded[Board]
    lock: Lock
    systems: dict[str, Locked]
    epoch: int

    @property
    def locks(self) -> list[Lock]:
        return [self.lock, *(locked.lock for locked in self.systems.values())]


def gather(board_path: Path, locks: Path | None = None) -> Inputs:
    """Load a board, its manifests and their locks; a lock in the folder `locks` wins over the one beside its file.

    Raises ManifestError where one is missing, wrong, or made for another list of packages.
    """
    board = load_board(board_path)
    systems = {}
    for name, partition in board.value.disk.partitions.items():
        if partition.content is not None and partition.content not in CONTENT_WORDS:
            loaded = load_system(Path(partition.content))
            systems[name] = Locked(loaded, _lock_of(loaded, locks))
    if not systems:
        raise ManifestError("no partition holds a system", where=board.position("disk.partitions"))
    lock = _lock_of(board, locks)
    epoch = max([lock.date, *(locked.lock.date for locked in systems.values())])
    return Inputs(board, lock, systems, epoch)


def _lock_of(loaded: Loaded[Board] | Loaded[System], folder: Path | None) -> Lock:
    path = lock_path(loaded.path)
    if folder is not None and (folder / path.name).exists():
        path = folder / path.name
    lock = load_lock(path)
    check_lock(lock, loaded)
    return lock


def digest(inputs: Inputs, public_key: bytes) -> str:
    """SHA-256, in hex, over everything that can reach an output byte."""
    state = hashlib.sha256()
    parts: list[object] = [FORMAT_VERSION, __version__, inputs.board.digest, hashlib.sha256(public_key).hexdigest()]
    parts += [hashlib.sha256(msgspec.json.encode(lock, order="sorted")).hexdigest() for lock in inputs.locks]
    for name, locked in sorted(inputs.systems.items()):
        parts += [name, locked.loaded.digest]
        for folder in _host_paths(locked.loaded.value):
            parts += [list(row) for row in _files(folder)]
    state.update(json.dumps(parts, sort_keys=True).encode())
    return state.hexdigest()


def _host_paths(system: System) -> list[Path]:
    named = [overlay.from_ for overlay in system.overlay]
    named += [path for source in system.sources if (path := source.directory or source.tar)]
    return [Path(path) for path in named]


def _files(top: Path) -> Iterator[tuple[str, str, str]]:
    """(path below top in hex, kind, digest or target) of what a source on the host holds, in byte order."""
    if not top.is_dir():
        yield "", "file", _sha256(top)
        return
    for folder, folders, names in os.walk(os.fsencode(top)):
        folders.sort()
        for name in sorted(names + [d for d in folders if os.path.islink(os.path.join(folder, d))]):
            path = os.path.join(folder, name)
            shown = os.path.relpath(path, os.fsencode(top)).hex()
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                yield shown, "symlink", os.readlink(path).hex()
            elif stat.S_ISREG(mode):
                yield shown, "file", _sha256(Path(os.fsdecode(path)))
            else:
                yield shown, "other", str(stat.S_IFMT(mode))
        yield os.path.relpath(folder, os.fsencode(top)).hex(), "directory", ""


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
