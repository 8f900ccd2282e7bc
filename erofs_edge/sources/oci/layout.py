# SPDX-License-Identifier: Apache-2.0
"""Image layouts on this machine: OCI image-spec, image-layout.md. A directory, or a tar of one in any compression."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import CHUNK, Cache
from erofs_edge.sources.oci.documents import MAX_DOCUMENT, REF_NAME, Descriptor, Index, check_bytes, parse_document
from erofs_edge.sources.tar import read_tar
from erofs_edge.tree import Content, FileContent, FileTree

CONTAINERD_NAME = "io.containerd.image.name"
"""annotation in which docker stores the whole reference"""


class Layout:
    """An open layout. Raises SourceError if it is not one."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self.where = str(path)
        self._path = path
        self._cache = cache
        self._tree: FileTree | None = None if path.is_dir() else read_tar(path, cache)
        if b'"imageLayoutVersion"' not in self._small("oci-layout"):
            raise SourceError("not an image layout: bad oci-layout file", where=self.where)

    def index(self) -> bytes:
        """index.json."""
        return self._small("index.json")

    def document(self, one: Descriptor) -> bytes:
        """A small blob, checked. Raises SourceError, VerificationError."""
        data = self._small(f"blobs/sha256/{one.sha256}")
        return check_bytes(data, one.sha256, hashlib.sha256(data).hexdigest(), f"{self.where}: {one.digest}")

    def blobs(self, wanted: Iterable[Descriptor]) -> dict[str, Path]:
        """Files with the blobs, by sha256, each checked. Raises SourceError, VerificationError."""
        return {one.sha256: self._blob(one) for one in wanted}

    def _blob(self, one: Descriptor) -> Path:
        name = f"blobs/sha256/{one.sha256}"
        where = f"{self.where}: {one.digest}"
        if self._tree is None:
            path = self._path / name
            self._size(name)
            check_bytes(b"", one.sha256, self._cache.digest(path), where)
            return path
        if (there := self._cache.blob(one.sha256)) is not None:
            return there
        content = self._content(name)
        digest = hashlib.sha256()
        final = self._cache.blob_path(one.sha256)
        with self._cache.writing(final) as out:
            for at in range(0, content.size, CHUNK):
                piece = content.read(at, CHUNK)
                digest.update(piece)
                out.write(piece)
            check_bytes(b"", one.sha256, digest.hexdigest(), where)
        return final

    def _small(self, name: str) -> bytes:
        if self._size(name) > MAX_DOCUMENT:
            raise SourceError(f"{name} has more than {MAX_DOCUMENT} bytes", where=self.where)
        content = self._content(name)
        return content.read(0, content.size)

    def _size(self, name: str) -> int:
        return self._content(name).size

    def _content(self, name: str) -> Content:
        if self._tree is None:
            path = self._path / name
            if path.is_file():
                return FileContent(path, path.stat().st_size)
        else:
            inode = self._tree.get(name)
            if inode is not None and inode.is_file and inode.content is not None:
                return inode.content
        raise SourceError(f"not a whole image layout: {name} is missing", where=self.where)


def choose_named(data: bytes, name: str | None, where: str) -> Index:
    """The requested part of index.json: the images of that name, or of the only name.

    Raises SourceError listing the names.
    """
    document = parse_document(data, where)
    if not isinstance(document, Index):
        raise SourceError("index.json is not an index", where=where)
    names = {label for one in document.manifests for label in _names(one)}
    if name is None:
        if len({next(iter(_names(one)), "") for one in document.manifests}) > 1:
            raise SourceError(
                f"holds several images: {', '.join(sorted(names))}", where=where, hint="choose one with `name`"
            )
        return document
    found = [one for one in document.manifests if name in _names(one)]
    if not found:
        raise SourceError(f"holds no image {name!r}; there is {', '.join(sorted(names)) or 'no name'}", where=where)
    return Index(found)


def _names(one: Descriptor) -> list[str]:
    annotations = one.annotations or {}
    return [annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if annotations.get(key)]
