# SPDX-License-Identifier: Apache-2.0
"""A container image as a FileTree: found in a layout or a registry, pinned by its manifest's digest, its blobs in the
cache. Cached blobs need no network."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from erofs_edge.errors import SourceError, VerificationError
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.credentials import find_login
from erofs_edge.sources.oci.documents import Descriptor, Index, choose, descend, diff_ids, parse_document
from erofs_edge.sources.oci.layers import apply_layer
from erofs_edge.sources.oci.layout import Layout, choose_named
from erofs_edge.sources.oci.reference import Reference, parse_reference
from erofs_edge.sources.oci.registry import PEER, Registry
from erofs_edge.sources.tar import open_archive
from erofs_edge.sources.tarball import Member
from erofs_edge.sources.transfer import Item, Progress, transfer
from erofs_edge.tree import FileTree


@dataclass(frozen=True, slots=True)
class Pinned:
    """An image for one architecture: the sha256 (hex) of its manifest, and the bytes of its layers as stored."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: the sha256 (hex) of its uncompressed archive, that file, its members, and its name for messages."""

    diff_id: str
    archive: Path
    members: list[Member]
    where: str


class _Store(Protocol):
    """Where an image comes from."""

    where: str

    def document(self, one: Descriptor) -> bytes: ...
    def blobs(self, wanted: list[Descriptor]) -> dict[str, Path]: ...


def pin_image(oci: Oci, arch: str, cache: Cache) -> Pinned:
    """A pin of the image as it is now, for a Debian architecture. Its manifest is put into the cache.

    Raises SourceError if there is no such image, MirrorError if the registry fails, VerificationError if content does
    not have its expected digest.
    """
    if oci.layout is not None:
        layout = Layout(Path(oci.layout), cache)
        first = choose(choose_named(layout.index(), oci.name, layout.where), arch, layout.where)
        data, manifest = descend(layout.document(first), arch, layout.where, layout.document)
    else:
        reference = parse_reference(oci.image or "")
        with contextlib.closing(_registry(reference, oci)) as registry:
            name = f"sha256:{reference.digest}" if reference.digest else reference.tag
            top = _kept(cache, reference.digest) or registry.manifest(name)
            data, manifest = descend(top, arch, str(reference), lambda one: registry.manifest(one.digest))
    sha256 = hashlib.sha256(data).hexdigest()
    _keep(cache, sha256, data)
    return Pinned(sha256, sum(layer.size for layer in manifest.layers))


def load_image(oci: Oci, sha256: str, arch: str, cache: Cache, progress: Progress | None = None) -> FileTree:
    """The tree of a pinned image. Raises as pin_image, and SourceError for hostile layers."""
    tree = FileTree()
    for layer in load_layers(oci, sha256, arch, cache, progress):
        apply_layer(tree, layer.members, layer.archive, layer.where)
    return tree


def load_layers(oci: Oci, sha256: str, arch: str, cache: Cache, progress: Progress | None = None) -> Iterator[Layer]:
    """The layers of a pinned image, the lowest first, unpacked and checked. Raises as load_image."""
    store: _Store
    if oci.layout is not None:
        store = Layout(Path(oci.layout), cache)
    else:
        store = _Remote(parse_reference(oci.image or ""), oci, cache, progress)
    data = store.document(Descriptor(digest=f"sha256:{sha256}", size=0))
    manifest = parse_document(data, store.where)
    if isinstance(manifest, Index):
        raise SourceError(
            "the lock pins an index, not an image", where=store.where, hint="make the lock again: erofs-edge lock"
        )
    (config,) = store.blobs([manifest.config]).values()
    unpacked = diff_ids(config.read_bytes(), manifest, arch, store.where)
    paths = store.blobs(manifest.layers)
    for number, (layer, wanted) in enumerate(zip(manifest.layers, unpacked, strict=True), 1):
        where = f"{store.where}: layer {number}"
        archive, kept = open_archive(paths[layer.sha256], cache, where, layer.sha256)
        found = kept.sha256 or layer.sha256
        if found != wanted:
            raise VerificationError(f"unpacked, its sha256 is {found}, the image says {wanted}", where=where)
        yield Layer(wanted, archive, kept.members, where)


class _Remote:
    """An image in a registry, through the cache."""

    def __init__(self, reference: Reference, oci: Oci, cache: Cache, progress: Progress | None) -> None:
        self.where = str(reference)
        self._reference, self._oci, self._cache, self._progress = reference, oci, cache, progress

    def document(self, one: Descriptor) -> bytes:
        data = _kept(self._cache, one.sha256)
        if data is None:
            with contextlib.closing(_registry(self._reference, self._oci)) as registry:
                data = registry.manifest(one.digest)
            _keep(self._cache, one.sha256, data)
        return data

    def blobs(self, wanted: list[Descriptor]) -> dict[str, Path]:
        there = {one.sha256: self._cache.blob(one.sha256) for one in wanted}
        missing = {one.sha256: one for one in wanted if there[one.sha256] is None}
        if missing:
            registry = _registry(self._reference, self._oci)
            there |= transfer(list(self._items(registry, missing)), registry, self._cache, self._progress)
        gone = [one.digest for one in wanted if there[one.sha256] is None]
        if gone:
            raise SourceError(
                f"the registry no longer has {', '.join(gone)}",
                where=self.where,
                hint="update the lock: erofs-edge lock",
            )
        return {sha256: path for sha256, path in there.items() if path is not None}

    def _items(self, registry: Registry, missing: dict[str, Descriptor]) -> Iterator[Item]:
        for sha256, one in missing.items():
            label = f"{self._reference.name} sha256:{sha256[:12]}"
            yield Item(label, registry.blob_uri(one.digest), f"{self.where}: {one.digest}", one.size, sha256, PEER)


def _registry(reference: Reference, oci: Oci) -> Registry:
    return Registry(reference, plain_http=oci.plain_http, login=lambda: find_login(reference.registry))


def _kept(cache: Cache, sha256: str | None) -> bytes | None:
    path = cache.blob(sha256) if sha256 is not None else None
    return path.read_bytes() if path is not None else None


def _keep(cache: Cache, sha256: str, data: bytes) -> None:
    if cache.blob(sha256) is None:
        with cache.writing(cache.blob_path(sha256)) as out:
            out.write(data)
