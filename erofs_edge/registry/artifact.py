# SPDX-License-Identifier: Apache-2.0
"""Files as an OCI artifact: the blobs that they are stored in, and the manifest that lists them.

Sources: OCI image-spec 1.1 (manifest, descriptor, "Guidelines for Artifact Usage"); containerd's EROFS differ, which
uses a layer of type application/vnd.erofs.layer.v1 (2.4) or one that ends in .erofs (2.1) unchanged, with the layer's
own digest as diff ID; the draft of the EROFS image specification for org.erofs.role.

A file is one blob, or several pieces at offsets; what no piece covers is zeros. A file that can be read in parts has a
table of hashes, itself a blob, named by the file's first descriptor: 32 bytes per BLOCK bytes, all zero for a hole.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from erofs_edge.errors import SourceError
from erofs_edge.sources.oci.documents import MANIFEST_TYPES, MAX_BLOB, MAX_DOCUMENT, PLATFORMS

BLOCK = 1 << 15  # bytes covered by one hash of a table
HASH = 32  # bytes
PIECES_MAX = 8192  # per artifact: its manifest stays below the registries' limit
FILES_MAX = 512
NAME_MAX = 255  # bytes

MANIFEST = MANIFEST_TYPES[0]
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"
LAYER = "application/vnd.erofs.layer.v1"
"""an EROFS image for containerd's differ and snapshotter, and for erofs-utils"""
LAYERS = {"erofs": LAYER, "oci": "application/vnd.oci.image.layer.v1.erofs"}
"""its possible names; containerd 2.1, which only takes layers of OCI's and Docker's types, knows it by the second"""
RAW = "application/octet-stream"
PIECE_TYPE = "application/vnd.erofs-edge.piece.v1"
BUILD = "application/vnd.erofs-edge.build.v1"
TITLE = "org.opencontainers.image.title"
ROLE = "org.erofs.role"
DEVICE = "device"
OFFSET = "erofs-edge.offset"
SIZE = "erofs-edge.size"
BLOCKS = "erofs-edge.blocks"
_DIGEST = re.compile("sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9_+@=,~-][A-Za-z0-9._+@=,~ -]*")


@dataclass(frozen=True, slots=True)
class Piece:
    """A blob's place in a file: offset and size in bytes, sha256 in hex."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A file: its size in bytes, its pieces by offset, the sha256 (hex) of its table of hashes, '' without one.

    device  whether it is a data device of the image that is the artifact's first file
    """

    name: str
    size: int
    pieces: tuple[Piece, ...]
    blocks: str = ""
    media_type: str = RAW
    device: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the file is one blob."""
        return len(self.pieces) == 1 and self.pieces[0].size == self.size


@dataclass(frozen=True, slots=True)
class Artifact:
    """`kind` is the artifactType; '' for a container image, whose `config` is then an image configuration."""

    files: tuple[Stored, ...]
    config: bytes = EMPTY_BYTES
    kind: str = ""

    @property
    def config_type(self) -> str:
        """The media type of the configuration."""
        return EMPTY if self.kind else CONFIG


class _Descriptor(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] = {}


class _Manifest(msgspec.Struct, frozen=True, rename={"kind": "artifactType", "version": "schemaVersion"}):
    layers: list[_Descriptor]
    config: _Descriptor
    version: int = 0
    kind: str = ""


def image_config(files: tuple[Stored, ...], arch: str) -> bytes:
    """The configuration of a container image whose layers are EROFS images, for a Debian architecture.

    `os.features` tells containerd's platforms that its layers are EROFS; a diff ID is the layer's own digest.
    """
    architecture, variants = PLATFORMS[arch]
    value: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "os.features": ["erofs"],
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one.pieces[0].sha256}" for one in files]},
    }
    if variants[0]:
        value["variant"] = variants[0]
    return _json(value)


def encode(artifact: Artifact) -> bytes:
    """The manifest. It contains no time and no machine name: the same files give the same digest anywhere."""
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(artifact.config_type, artifact.config),
        "layers": [one for file in artifact.files for one in _layers(file)],
    }
    if artifact.kind:
        value["artifactType"] = artifact.kind
    return _json(value)


def descriptor(media_type: str, data: bytes, **annotations: str) -> dict[str, Any]:
    """A manifest's description of some bytes."""
    value: dict[str, Any] = {
        "mediaType": media_type,
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
    }
    return value | ({"annotations": annotations} if annotations else {})


def decode(data: bytes, where: str) -> Artifact:
    """The artifact in a manifest, without its configuration. Raises SourceError if it is not one of files.

    Layers without a title, such as EROFS images pushed by other tools, are named by their position.
    """
    if len(data) > MAX_DOCUMENT:
        raise SourceError(f"a manifest of more than {MAX_DOCUMENT} bytes", where=where)
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a manifest: {error}", where=where) from error
    if manifest.version != 2 or not 0 < len(manifest.layers) <= PIECES_MAX + FILES_MAX:
        raise SourceError("not a manifest of files", where=where)
    named: dict[str, list[_Descriptor]] = {}
    for number, layer in enumerate(manifest.layers, 1):
        if not _is_ours(layer):
            raise SourceError(
                f"a layer of type {layer.media_type[:80]!r} is no EROFS image",
                where=where,
                hint="a container image of archives is a source of a manifest: `oci:` there, or fs build --oci-layout",
            )
        named.setdefault(layer.annotations.get(TITLE, f"layer-{number}.erofs"), []).append(layer)
    if len(named) > FILES_MAX:
        raise SourceError(f"an artifact of {len(named)} files, more than {FILES_MAX}", where=where)
    return Artifact(tuple(_stored(name, parts, where) for name, parts in named.items()), b"", manifest.kind)


def check_name(name: str, where: str) -> str:
    """Return a file's name, if it can be used in any folder. Raises SourceError."""
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise SourceError(f"not a name for a file: {name[:80]!r}", where=where)
    return name


def _is_ours(layer: _Descriptor) -> bool:
    kind, _, coded = layer.media_type.partition("+")
    if kind.startswith("application/vnd.erofs"):
        return not coded
    return TITLE in layer.annotations


def _layers(file: Stored) -> list[dict[str, Any]]:
    found = []
    for number, piece in enumerate(file.pieces):
        annotations = {TITLE: file.name}
        if not file.is_whole:
            annotations |= {OFFSET: str(piece.offset)} | ({SIZE: str(file.size)} if not number else {})
        if file.blocks and not number:
            annotations[BLOCKS] = f"sha256:{file.blocks}"
        if file.device:
            annotations[ROLE] = DEVICE
        kind = file.media_type if file.is_whole else PIECE_TYPE
        found.append(
            {"mediaType": kind, "digest": f"sha256:{piece.sha256}", "size": piece.size, "annotations": annotations}
        )
    return found


def _stored(name: str, parts: list[_Descriptor], where: str) -> Stored:
    check_name(name, where)
    first = parts[0]
    if len(parts) == 1 and OFFSET not in first.annotations:
        pieces = [Piece(0, _size(first.size, name, where), _sha256(first.digest, where))]
        size = first.size
    else:
        size = _size(first.annotations.get(SIZE, "-1"), name, where)
        pieces = [
            Piece(
                _size(one.annotations.get(OFFSET, "-1"), name, where),
                _size(one.size, name, where),
                _sha256(one.digest, where),
            )
            for one in parts
        ]
    pieces.sort(key=lambda piece: piece.offset)
    overlap = any(a.offset + a.size > b.offset for a, b in pairwise(pieces))
    if overlap or pieces[-1].offset + pieces[-1].size > size:
        raise SourceError(f"{name}: its pieces overlap, or reach behind its end", where=where)
    blocks = first.annotations.get(BLOCKS, "")
    return Stored(
        name, size, tuple(pieces), _sha256(blocks, where) if blocks else "", first.media_type,
        first.annotations.get(ROLE) == DEVICE,
    )  # fmt: skip


def _size(value: int | str, name: str, where: str) -> int:
    text = str(value)
    number = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else -1
    if not 0 <= number <= MAX_BLOB:
        raise SourceError(f"{name}: {text[:40]} is no number of bytes", where=where)
    return number


def _sha256(digest: str, where: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise SourceError(f"not a digest that is known here: {digest[:80]!r}", where=where)
    return match[1]


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
