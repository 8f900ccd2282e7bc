# SPDX-License-Identifier: Apache-2.0
"""Gather everything that a build's bytes depend on, and compute one digest of it.

The digest covers the resolved manifests, their locks, the files of overlays and sources, the public key and the version
of our own formats. Equal digests mean equal outputs, so a build with an unchanged digest has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from erofs_edge import __version__
from erofs_edge.build.loader import loader_digest
from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import Loaded, load_board, load_lock, load_system, lock_path
from erofs_edge.manifest.lockfile import lock_bytes, lock_in
from erofs_edge.manifest.model import CONTENT_WORDS, Board, Lock, System
from erofs_edge.sources.base import image_of
from erofs_edge.sources.cache import file_digest
from erofs_edge.sources.debian.lock import check_lock
from erofs_edge.sources.directory import entries

FORMAT_VERSION = 17
"""version of the output bytes: raised by every change to them in this project (codec pins included)"""


@dataclass(frozen=True, slots=True)
class Locked:
    """A manifest with the lock that pins it."""

    loaded: Loaded[System]
    lock: Lock


@dataclass(frozen=True, slots=True)
class Inputs:
    """lock: the board's own. system: what goes into the partition `partition`, with the `layers` that come with it.
    epoch: seconds since 1970, the only time in the build: the newest date of the locks."""

    board: Loaded[Board]
    lock: Lock
    partition: str
    system: Locked
    layers: tuple[Locked, ...] = ()

    @property
    def epoch(self) -> int:
        return max(self.lock.date, self.system.lock.date, *(layer.lock.date for layer in self.layers))


def gather(
    board_path: Path,
    locks: Path | None = None,
    system_path: Path | None = None,
    *,
    baseline: Path | None = None,
    profile: Path | None = None,
) -> Inputs:
    """Load a board, its manifests and their locks; a lock in the folder `locks` takes precedence over the one beside
    its file.

    `system_path` is a manifest to use instead of the board's own; `baseline` and `profile` replace the system's
    `erofs.baseline` and `erofs.profile`.
    Raises ManifestError if one is missing, wrong, or was made for another list of packages.
    """
    board = load_board(board_path)
    partitions = board.value.disk.partitions
    named = [(name, p.content) for name, p in partitions.items() if p.content and p.content not in CONTENT_WORDS]
    if len(named) != 1:
        raise ManifestError(
            f"exactly one partition must hold a system, {len(named)} do",
            where=board.position("disk.partitions"),
            hint="give one partition the path of a manifest as its `content`",
        )
    partition, manifest = named[0]
    system = load_system(system_path if system_path is not None else Path(manifest))
    if system.value.kind != "system":
        raise system.error(
            "kind",
            f"{system.value.system} is of kind '{system.value.kind}': a partition of a board holds a whole system",
            hint=f"erofs-edge build {system.path} makes an image of it; `layers` of a system includes it",
        )
    if system.value.arch != board.value.arch:
        raise system.error("arch", f"the system is for {system.value.arch}, the board for {board.value.arch}")
    laid_out = _for_board(_lay_out(system, baseline=baseline, profile=profile), board.value)
    locked = Locked(laid_out, lock_of(system, locks))
    layers = (replace(one, loaded=_for_board(one.loaded, board.value)) for one in gather_layers(system, locks))
    return Inputs(board, lock_of(board, locks), partition, locked, tuple(layers))


def compatible(board: str, system: str) -> str:
    """The compatibility string of a device and of its updates, from the names of a board and a system.

    A bundle for other hardware or another system has a different one and is refused.
    """
    return f"{board}-{system}"


def _for_board(loaded: Loaded[System], board: Board) -> Loaded[System]:
    """A manifest with the variables that follow from its board; variables set in the manifest take precedence."""
    system = loaded.value
    known = {"BOARD": board.board, "COMPATIBLE": compatible(board.board, system.system)}
    return replace(loaded, value=msgspec.structs.replace(system, variables=known | system.variables))


def _lay_out(system: Loaded[System], **paths: Path | None) -> Loaded[System]:
    """The system with other layout files. Only their content is in the digest, not their names."""
    given = {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    erofs = msgspec.structs.replace(system.value.erofs, **given)
    return replace(system, value=msgspec.structs.replace(system.value, erofs=erofs))


def gather_layers(system: Loaded[System], locks: Path | None = None) -> tuple[Locked, ...]:
    """The manifests of a system's `layers` with their locks. Raises ManifestError if one does not fit the system."""
    found: dict[str, Locked] = {}
    for index, path in enumerate(system.value.layers):
        layer, pointer = load_system(path), f"layers.{index}"
        value = layer.value
        if value.kind == "system":
            raise system.error(pointer, f"{value.system} is a whole system", hint="set its `kind`: sysext, app, …")
        if (value.suite, value.arch) != (system.value.suite, system.value.arch):
            raise system.error(pointer, f"{value.system} is {value.suite} for {value.arch}")
        if value.system in found:
            raise system.error(pointer, f"a second layer is called {value.system}")
        found[value.system] = Locked(layer, lock_of(layer, locks))
    return tuple(found.values())


def lock_of(loaded: Loaded[Board] | Loaded[System], folder: Path | None = None) -> Lock:
    """The lock of a board or a manifest: in `folder`, else beside it. Raises ManifestError if it does not fit."""
    path = lock_path(loaded.path)
    if folder is not None:
        inside = lock_in(folder, loaded.path, board=isinstance(loaded.value, Board))
        path = inside if inside.exists() else path
    lock = load_lock(path)
    check_lock(lock, loaded)
    return lock


def digest(inputs: Inputs, public_key: bytes) -> str:
    """SHA-256, in hex, over everything that can influence an output byte."""
    parts: list[object] = [FORMAT_VERSION, __version__, hashlib.sha256(public_key).hexdigest()]
    parts += [inputs.board.digest, inputs.system.loaded.digest, loader_digest(inputs.board.value)]
    parts += [hashlib.sha256(lock_bytes(lock)).hexdigest() for lock in (inputs.lock, inputs.system.lock)]
    parts += system_files(inputs.system.loaded.value)
    for layer in inputs.layers:
        parts += [layer.loaded.digest, hashlib.sha256(lock_bytes(layer.lock)).hexdigest()]
        parts += system_files(layer.loaded.value)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def system_files(system: System) -> list[list[str]]:
    """A row for everything on this machine that a manifest takes content from, in a fixed order."""
    return [list(row) for folder in host_paths(system) for row in _files(folder)]


def host_paths(system: System) -> list[Path]:
    """Files and folders of this machine that a manifest takes content from, absolute."""
    named = [overlay.from_ for overlay in system.overlay]
    named += [path for source in system.sources if (path := source.directory or source.tar)]
    named += [path for source in system.sources if source.oci is not None and (path := source.oci.layout)]
    named += [*system.debs, *([str(image_of(Path(system.base)))] if system.base is not None else [])]
    if system.selinux is not None:
        named.append(system.selinux.file_contexts)
    if system.erofs.baseline is not None:
        named.append(str(image_of(Path(system.erofs.baseline))))
    if system.erofs.profile is not None:
        named.append(system.erofs.profile)
    return [Path(path) for path in named]


def _files(top: Path) -> Iterator[tuple[str, str, str]]:
    """(path below top in hex, kind, digest or target) for everything in a source on the host, in byte order."""
    if top.is_dir():
        yield from ((path.hex(), kind, value.hex()) for path, kind, value, _ in entries(top))
        return
    try:
        yield "", "file", file_digest(top)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(top)) from error
