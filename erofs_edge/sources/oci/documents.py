# SPDX-License-Identifier: Apache-2.0
"""Indexes, manifests and configurations of images: OCI image-spec 1.1 (image-index, manifest, config, descriptor) and
Docker's image manifest version 2, schema 2, which differs in media types only.

The input is untrusted: documents are bounded, digests are sha256, and a document is either an index or a manifest,
never both (distribution-spec, "mediaType" of ambiguous documents).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from erofs_edge.errors import SourceError, VerificationError

MAX_DOCUMENT = 4 << 20  # bytes: the size of manifest that registries must accept
MAX_LAYERS = 512
MAX_DEPTH = 4  # of nested indexes
MAX_BLOB = 1 << 40  # bytes
Shape = TypeVar("Shape", bound=msgspec.Struct)

REF_NAME = "org.opencontainers.image.ref.name"

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LAYER_TYPE = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar([+](gzip|zstd))?"
    r"|docker\.image\.rootfs(\.foreign)?\.diff\.tar(\.(gzip|zstd))?)"
)
# Debian's architecture → image-spec's (Go's) and matching variants, the best first
PLATFORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "arm64": ("arm64", ("v8", "")),
    "armhf": ("arm", ("v7", "", "v6")),
    "armel": ("arm", ("v5", "")),
    "amd64": ("amd64", ("", "v1")),
    "i386": ("386", ("",)),
    "riscv64": ("riscv64", ("",)),
    "ppc64el": ("ppc64le", ("",)),
    "s390x": ("s390x", ("",)),
    "loong64": ("loong64", ("",)),
}


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's terms."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    """A reference by digest ('sha256:…') and size in bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def sha256(self) -> str:
        """The digest in hex."""
        return self.digest.removeprefix("sha256:")


class _Document(msgspec.Struct, frozen=True, rename={"media_type": "mediaType", "version": "schemaVersion"}):
    version: int = 0
    media_type: str = ""
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class _Config(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    rootfs: _RootFs = _RootFs()


@dataclass(frozen=True, slots=True)
class Index:
    """Images to choose from."""

    manifests: list[Descriptor]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image; the lowest layer first."""

    config: Descriptor
    layers: list[Descriptor]


def parse_document(data: bytes, where: str) -> Index | Manifest:
    """Parse an index or a manifest. Raises SourceError if it is neither, or invalid."""
    document = _decoded(data, _Document, where)
    if document.version == 1:
        raise SourceError("an image manifest of schema 1, which is obsolete", where=where)
    index, manifest = document.manifests is not None, document.layers is not None or document.config is not None
    wrong_type = (index and document.media_type in MANIFEST_TYPES) or (manifest and document.media_type in INDEX_TYPES)
    if document.version != 2 or index == manifest or wrong_type:
        raise SourceError("neither an image index nor an image manifest", where=where)
    if document.manifests is not None:
        return Index([_checked(one, MAX_DOCUMENT, where) for one in document.manifests])
    if document.config is None or document.layers is None:
        raise SourceError("a manifest without a configuration or layers", where=where)
    if len(document.layers) > MAX_LAYERS:
        raise SourceError(f"an image of {len(document.layers)} layers, more than {MAX_LAYERS}", where=where)
    for layer in document.layers:
        if not LAYER_TYPE.fullmatch(layer.media_type):
            raise SourceError(f"a layer of type {layer.media_type[:80]!r} is no file system", where=where)
    config = _checked(document.config, MAX_DOCUMENT, where)
    return Manifest(config, [_checked(layer, MAX_BLOB, where) for layer in document.layers])


def diff_ids(data: bytes, manifest: Manifest, arch: str, where: str) -> list[str]:
    """sha256 (hex) of each layer when unpacked, from the configuration of an image.

    Raises SourceError if the image is for another architecture or its parts do not belong together.
    """
    config = _decoded(data, _Config, where)
    wanted = PLATFORMS[arch][0]
    if config.architecture != wanted or config.os != "linux":
        raise SourceError(f"the image is for {config.os}/{config.architecture}, not linux/{wanted}", where=where)
    ids = config.rootfs.diff_ids
    if len(ids) != len(manifest.layers) or not all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in ids):
        raise SourceError(f"{len(manifest.layers)} layers, but {len(ids)} digests of unpacked ones", where=where)
    return [one.removeprefix("sha256:") for one in ids]


def choose(index: Index, arch: str, where: str) -> Descriptor:
    """The image of an index for a Debian architecture. Raises SourceError listing what there is."""
    wanted, variants = PLATFORMS[arch]
    fitting = [
        (variants.index(one.platform.variant), number)
        for number, one in enumerate(index.manifests)
        if (p := one.platform) and p.architecture == wanted and p.os == "linux" and p.variant in variants
    ]
    if fitting:
        return index.manifests[min(fitting)[1]]
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    known = sorted({str(one.platform) for one in index.manifests if one.platform and one.platform.os != "unknown"})
    raise SourceError(f"no image for linux/{wanted}; available: {', '.join(known) or 'none at all'}", where=where)


def descend(
    data: bytes, arch: str, where: str, fetch: Callable[[Descriptor], bytes], first: Descriptor | None = None
) -> tuple[bytes, Manifest]:
    """Follow indexes down to the manifest for an architecture: its bytes and its value.

    `first` is the choice in the first index, if already made. Raises SourceError, and what `fetch` raises.
    """
    for _ in range(MAX_DEPTH):
        document = parse_document(data, where)
        if isinstance(document, Manifest):
            return data, document
        data = fetch(first or choose(document, arch, where))
        first = None
    raise SourceError(f"indexes in indexes, more than {MAX_DEPTH} deep", where=where)


def check_bytes(data: bytes, sha256: str, found: str, where: str) -> bytes:
    """The data, if `found` is the expected digest. Raises VerificationError."""
    if found != sha256:
        raise VerificationError(f"sha256 is {found}, the digest says {sha256}", where=where)
    return data


def _checked(one: Descriptor, largest: int, where: str) -> Descriptor:
    if not re.fullmatch("sha256:[0-9a-f]{64}", one.digest):
        raise SourceError(f"not a digest that is known here: {one.digest[:80]!r}", where=where)
    if not 0 <= one.size <= largest:
        raise SourceError(f"{one.digest} has {one.size} bytes, at most {largest} are read", where=where)
    return one


def _decoded(data: bytes, shape: type[Shape], where: str) -> Shape:
    if len(data) > MAX_DOCUMENT:
        raise SourceError(f"a document of more than {MAX_DOCUMENT} bytes", where=where)
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a document of an image: {error}", where=where) from error
