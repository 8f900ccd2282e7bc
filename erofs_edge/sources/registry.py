# SPDX-License-Identifier: Apache-2.0
"""The sources that a manifest can name, by key: how each is pinned, and how it becomes a tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from erofs_edge.errors import ManifestError, VerificationError
from erofs_edge.manifest.model import Source
from erofs_edge.manifest.supply import LockedSource, Oci
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import fingerprint, read_directory
from erofs_edge.sources.tar import read_tar
from erofs_edge.tree import FileTree


class Kind(NamedTuple):
    """pin   (source, Debian architecture, cache) → sha256 in hex and size in bytes of the source as it is now
    load  (source, sha256 of the pin, architecture, cache) → its tree
    moves whether it may change without a change to the manifest's files: then only `lock` looks it up again
    """

    pin: Callable[[Source, str, Cache], tuple[str, int]]
    load: Callable[[Source, str, str, Cache], FileTree]
    moves: Callable[[Source], bool] = lambda source: False


def _pin_directory(source: Source, _arch: str, _cache: Cache) -> tuple[str, int]:
    return fingerprint(Path(source.directory or ""))


def _load_directory(source: Source, _sha256: str, _arch: str, _cache: Cache) -> FileTree:
    return read_directory(Path(source.directory or ""))


def _pin_tar(source: Source, _arch: str, cache: Cache) -> tuple[str, int]:
    path = Path(source.tar or "")
    return cache.digest(path), path.stat().st_size


def _load_tar(source: Source, _sha256: str, _arch: str, cache: Cache) -> FileTree:
    return read_tar(Path(source.tar or ""), cache, sha256=source.sha256)


def _pin_oci(source: Source, arch: str, cache: Cache) -> tuple[str, int]:
    from erofs_edge.sources.oci.image import pin_image

    pinned = pin_image(source.oci or Oci(), arch, cache)
    return pinned.sha256, pinned.size


def _load_oci(source: Source, sha256: str, arch: str, cache: Cache) -> FileTree:
    from erofs_edge.sources.oci.image import load_image

    return load_image(source.oci or Oci(), sha256, arch, cache)


SOURCES: dict[str, Kind] = {
    "directory": Kind(_pin_directory, _load_directory),
    "tar": Kind(_pin_tar, _load_tar),
    "oci": Kind(_pin_oci, _load_oci, lambda source: source.oci is not None and source.oci.image is not None),
}


def kind_of(source: Source) -> str:
    """The one key of `SOURCES` that a source has. Raises ManifestError unless it is exactly one."""
    named = [kind for kind in SOURCES if getattr(source, kind) is not None]
    if len(named) != 1:
        raise ManifestError(f"a source must name exactly one of {', '.join(SOURCES)}")
    return named[0]


def name_of(source: Source, top: Path) -> str:
    """The name of a source in locks and errors: the reference of its image, or its path from the folder `top`."""
    if source.oci is not None and source.oci.image is not None:
        return source.oci.image
    path = source.directory or source.tar or (source.oci.layout if source.oci is not None else None) or ""
    name = Path(os.path.relpath(path, top)).as_posix()
    return f"{name}:{source.oci.name}" if source.oci is not None and source.oci.name else name


def pin_source(source: Source, name: str, arch: str, cache: Cache) -> LockedSource:
    """A pin of the source as it is now. Raises SourceError, MirrorError or VerificationError."""
    kind = kind_of(source)
    sha256, size = SOURCES[kind].pin(source, arch, cache)
    return LockedSource(kind=kind, name=name, sha256=sha256, size=size)  # type: ignore[arg-type]


def load_source(source: Source, cache: Cache, *, pin: LockedSource | None = None, arch: str = "arm64") -> FileTree:
    """The tree of one source of a manifest, before it is laid at its `to`; every inode's `origin` names the source.

    `pin` comes from the lock: any other content raises VerificationError. Raises SourceError if the source cannot be
    read, ManifestError unless exactly one kind of source is named.
    """
    kind = kind_of(source)
    name = pin.name if pin is not None else name_of(source, Path())
    if pin is None or not SOURCES[kind].moves(source):
        now = pin_source(source, name, arch, cache)
        if pin is not None and now.sha256 != pin.sha256:
            raise VerificationError(
                f"the {kind} is not what the lock pins: sha256 is {now.sha256}, the lock says {pin.sha256}",
                where=name,
                hint="restore it, or accept the change: erofs-edge lock",
            )
        pin = now
    tree = SOURCES[kind].load(source, pin.sha256, arch, cache)
    for _, inode in tree.walk():
        inode.origin = f"{kind} {name}"
    return tree
