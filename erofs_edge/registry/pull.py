# SPDX-License-Identifier: Apache-2.0
"""Fetch an artifact's files: check its signature first, then fetch blobs into the cache, each checked, then make files.

Nothing appears under its name until all of it matches the hashes in the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erofs_edge.errors import CapacityError, ErofsEdgeError, FormatError, SourceError, UsageError, VerificationError
from erofs_edge.registry import artifact
from erofs_edge.registry.artifact import Artifact, Stored
from erofs_edge.registry.remote import Remote
from erofs_edge.registry.signature import ENVELOPE, SIGNED, STATEMENT_MAX
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.documents import MAX_DOCUMENT, PLATFORMS, Index, check_bytes, choose, parse_document
from erofs_edge.sources.oci.registry import PEER
from erofs_edge.sources.transfer import Item, Progress, transfer
from erofs_edge.trust.dsse import unseal
from erofs_edge.trust.key import VerificationKey
from erofs_edge.writing import NO_SPACE, folder_beside

LAST = "release.json"
"""this file covers the others: it gets its name after them"""
SIGNATURES_MAX = 64


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact in a registry: sha256 (hex) of its manifest."""

    sha256: str
    value: Artifact


@dataclass(frozen=True, slots=True)
class Pulled:
    """The files now present; bytes of all blobs, and of those that were fetched."""

    files: list[Path]
    bytes: int
    fetched_bytes: int


class _Layers(msgspec.Struct, frozen=True):
    layers: list[dict[str, object]] = []


def find(remote: Remote, arch: str, key: VerificationKey | None = None) -> Found:
    """What the reference stands for, for a Debian architecture if there are several.

    With a key, one of the attached signatures must be the key's, else VerificationError. Raises SourceError if it does
    not exist or is not an artifact of files, MirrorError if the registry fails, UsageError for an unknown architecture.
    """
    if arch not in PLATFORMS:
        raise UsageError(f"no architecture {arch!r}", hint=f"one of {', '.join(PLATFORMS)}")
    reference = remote.reference
    where = str(reference)
    data = remote.manifest(f"sha256:{reference.digest}" if reference.digest else reference.tag)
    if b'"manifests"' in data and isinstance(index := parse_document(data, where), Index):
        data = remote.manifest(choose(index, arch, where).digest)
    found = Found(hashlib.sha256(data).hexdigest(), artifact.decode(data, where))
    if key is not None:
        check_signature(remote, found.sha256, key)
    return found


def check_signature(remote: Remote, sha256: str, key: VerificationKey) -> None:
    """Raises VerificationError unless a statement about this manifest, signed by the key, is attached to it."""
    where = f"{remote.reference.registry}/{remote.reference.name}@sha256:{sha256}"
    seen = 0
    for one in remote.referrers(sha256):
        if one.kind != ENVELOPE or seen >= SIGNATURES_MAX:
            continue
        seen += 1
        for envelope in _envelopes(remote, one.digest):
            with contextlib.suppress(VerificationError, FormatError):
                statement = unseal(envelope, key)
                if statement.kind == SIGNED and sha256 in statement.subjects.values():
                    return
    raise VerificationError(
        f"none of its {seen} signatures is by '{key.name}'", where=where,
        hint="give the public key of whoever pushed it; erofs-edge push --key signs",
    )  # fmt: skip


def fetch(found: Found, remote: Remote, out: Path, cache: Cache, progress: Progress | None = None) -> Pulled:
    """Write the artifact's files to the folder `out`. The remote is closed afterwards.

    Raises VerificationError if a blob has another hash, SourceError if one is gone, MirrorError if the registry fails
    (what has arrived is kept), CapacityError if there is no space.
    """
    where = str(remote.reference)
    pieces = {piece.sha256: piece for file in found.value.files for piece in file.pieces}
    there = {sha256: path for sha256 in pieces if (path := cache.blob(sha256)) is not None}
    missing = [
        Item(
            f"{remote.reference.name} sha256:{sha256[:12]}",
            remote.blob_uri(f"sha256:{sha256}"),
            f"{where}: sha256:{sha256}",
            piece.size,
            sha256,
            PEER,
            "the manifest",
        )
        for sha256, piece in pieces.items()
        if sha256 not in there
    ]
    fetched = transfer(missing, remote, cache, progress) if missing else {}
    remote.close()
    gone = [sha256 for sha256, path in fetched.items() if path is None]
    if gone:
        raise SourceError(f"the registry no longer has sha256:{gone[0]}", where=where, hint="push it again")
    there |= {sha256: path for sha256, path in fetched.items() if path is not None}
    for sha256, piece in pieces.items():
        if there[sha256].stat().st_size != piece.size:
            raise VerificationError(f"sha256:{sha256} does not have the size that the manifest says", where=where)
    files = _assemble(found.value, there, out)
    return Pulled(files, sum(one.size for one in pieces.values()), sum(one.size for one in missing))


def _envelopes(remote: Remote, digest: str) -> Iterator[bytes]:
    """The statements of a referrer, each checked against its digest."""
    try:
        layers = msgspec.json.decode(remote.manifest(digest), type=_Layers).layers[:SIGNATURES_MAX]
    except msgspec.MsgspecError:
        return
    for layer in layers:
        sha256 = str(layer.get("digest", "")).removeprefix("sha256:")
        data = remote.blob(sha256, min(STATEMENT_MAX, MAX_DOCUMENT))
        yield check_bytes(data, sha256, hashlib.sha256(data).hexdigest(), f"{remote.reference}: {digest}")


def _assemble(value: Artifact, blobs: dict[str, Path], out: Path) -> list[Path]:
    names = sorted((file.name for file in value.files), key=lambda name: (name == LAST, name))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with folder_beside(out / LAST) as folder:
            for file in value.files:
                _write(file, blobs, folder / file.name)
            for name in names:
                (folder / name).replace(out / name)
    except OSError as error:
        kind = CapacityError if error.errno in NO_SPACE else ErofsEdgeError
        raise kind(f"cannot write: {error.strerror}", where=str(error.filename2 or out)) from error
    return [out / name for name in names]


def _write(file: Stored, blobs: dict[str, Path], path: Path) -> None:
    with path.open("wb") as target:
        target.truncate(file.size)
        for piece in file.pieces:
            with blobs[piece.sha256].open("rb") as source:
                target.seek(piece.offset)
                shutil.copyfileobj(source, target, 1 << 20)
