# SPDX-License-Identifier: Apache-2.0
"""The sources that a manifest can name, by their key there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Source
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import read_directory
from erofs_edge.sources.tar import read_tar
from erofs_edge.tree import FileTree


def _directory(path: Path, _source: Source, _cache: Cache) -> FileTree:
    return read_directory(path, origin=str(path))


def _tar(path: Path, source: Source, cache: Cache) -> FileTree:
    return read_tar(path, cache, sha256=source.sha256)


SOURCES: dict[str, Callable[[Path, Source, Cache], FileTree]] = {"directory": _directory, "tar": _tar}


def load_source(source: Source, cache: Cache) -> FileTree:
    """The tree of one source of a manifest, still to be laid at its `to`.

    Raises SourceError where it cannot be read, VerificationError where its hash is another one, ManifestError
    where not exactly one kind of source is named.
    """
    named = [kind for kind in SOURCES if getattr(source, kind) is not None]
    if len(named) != 1:
        raise ManifestError(f"a source names exactly one of {', '.join(SOURCES)}")
    return SOURCES[named[0]](Path(getattr(source, named[0])), source, cache)
