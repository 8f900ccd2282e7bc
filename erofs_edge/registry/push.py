# SPDX-License-Identifier: Apache-2.0
"""Send files to a registry; what it already has is not sent again.

Blobs come first, then the manifest under its tag, then what is attached to it: an interrupted push leaves nothing that
looks complete, and the next one continues where it ended.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from erofs_edge.errors import MirrorError
from erofs_edge.registry import artifact
from erofs_edge.registry.artifact import Artifact
from erofs_edge.registry.pieces import Cut, Progress
from erofs_edge.registry.remote import Referrer, Remote
from erofs_edge.sources import transfer
from erofs_edge.sources.http import Upload

CONNECTIONS = 4
TABLES = "application/vnd.erofs-edge.blocks.v1"
"""artifactType of the tables of hashes, which are attached to the manifest that names them"""


@dataclass(frozen=True, slots=True)
class Blob:
    """Something to be stored: its size in bytes, and a function that returns its bytes."""

    size: int
    body: Upload


@dataclass(slots=True)
class Pushed:
    """sha256 (hex) of the manifest; number and bytes of all blobs, and of those that were sent; (kind, sha256) of what
    was attached."""

    sha256: str
    blobs: int = 0
    bytes: int = 0
    sent_blobs: int = 0
    sent_bytes: int = 0
    attached: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Paper:
    """Something attached to an artifact: its artifactType, and media type, name and bytes of its one file."""

    kind: str
    media_type: str
    name: str
    data: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)


def push(
    value: Artifact,
    cuts: Iterable[Cut],
    remote: Remote,
    papers: Callable[[str], Iterable[Paper]] = lambda _: (),
    progress: Progress | None = None,
) -> Pushed:
    """Store an artifact under its reference's tag, and what is attached to it: `papers`, called with its manifest's
    sha256.

    `cuts` are the files of the artifact. The remote is closed afterwards. Raises MirrorError if the registry fails,
    SourceError if a file changes meanwhile.
    """  # fmt: skip
    cuts = list(cuts)
    manifest = artifact.encode(value)
    done = Pushed(hashlib.sha256(manifest).hexdigest())
    blobs = {_sha256(value.config): Blob(len(value.config), value.config)}
    for cut in cuts:
        for piece in cut.stored.pieces:
            blobs[piece.sha256] = Blob(piece.size, partial(cut.body, piece))
    try:
        _send(blobs, remote, done, progress)
        remote.put_manifest(remote.reference.tag, manifest, artifact.MANIFEST)
        subject = artifact.descriptor(artifact.MANIFEST, manifest)
        tables = [cut for cut in cuts if cut.table]
        if tables:
            files = [(artifact.RAW, f"{cut.stored.name}.blocks", cut.table) for cut in tables]
            _attach(remote, subject, TABLES, files, {}, done)
        for paper in papers(done.sha256):
            _attach(remote, subject, paper.kind, [(paper.media_type, paper.name, paper.data)], paper.annotations, done)
    finally:
        remote.close()
    return done


def _attach(
    remote: Remote,
    subject: dict[str, Any],
    kind: str,
    files: list[tuple[str, str, bytes]],
    annotations: Mapping[str, str],
    done: Pushed,
) -> None:
    """Store a manifest with a `subject`; if the registry keeps no list of referrers, the fallback tag names it."""
    layers = [artifact.descriptor(media, data, **{artifact.TITLE: name}) for media, name, data in files]
    value = {
        "schemaVersion": 2,
        "mediaType": artifact.MANIFEST,
        "artifactType": kind,
        "config": artifact.descriptor(artifact.EMPTY, artifact.EMPTY_BYTES),
        "layers": layers,
        "subject": subject,
        "annotations": dict(annotations),
    }
    manifest = msgspec.json.encode(value, order="sorted")
    blobs = {_sha256(data): Blob(len(data), data) for _, _, data in files}
    blobs[_sha256(artifact.EMPTY_BYTES)] = Blob(len(artifact.EMPTY_BYTES), artifact.EMPTY_BYTES)
    _send(blobs, remote, done, None)
    mine = Referrer(f"sha256:{_sha256(manifest)}", len(manifest), artifact.MANIFEST, kind, dict(annotations))
    if not remote.put_manifest(mine.digest, manifest, artifact.MANIFEST):
        sha256 = str(subject["digest"]).removeprefix("sha256:")
        known = remote.tagged_referrers(sha256)
        if mine.digest not in {one.digest for one in known}:
            remote.list_by_tag(sha256, [*known, mine])
    done.attached.append((kind, _sha256(manifest)))


def _send(blobs: Mapping[str, Blob], remote: Remote, done: Pushed, progress: Progress | None) -> None:
    """Store these blobs in the registry, several at a time, each with several attempts."""
    lock, stop = threading.Lock(), threading.Event()
    total = sum(blob.size for blob in blobs.values())
    passed = 0

    def one(sha256: str, blob: Blob) -> None:
        nonlocal passed
        failures = 0
        while not stop.is_set():
            try:
                sent = not remote.has_blob(sha256)
                if sent:
                    remote.upload(sha256, blob.size, blob.body)
                break
            except MirrorError as error:
                failures += 1
                if failures >= transfer.ATTEMPTS or stop.wait(transfer.PAUSE * failures):
                    hint = error.hint or "run the same command again: what was sent is kept"
                    raise MirrorError(error.message, where=error.where, hint=hint) from error
        else:
            return
        with lock:
            passed += blob.size
            done.blobs, done.bytes = done.blobs + 1, done.bytes + blob.size
            done.sent_blobs, done.sent_bytes = done.sent_blobs + sent, done.sent_bytes + sent * blob.size
            if progress is not None:
                progress(passed, total)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        order = sorted(blobs, key=lambda sha256: (-blobs[sha256].size, sha256))
        jobs = [pool.submit(one, sha256, blobs[sha256]) for sha256 in order]
        finished, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
        try:
            for job in finished:
                job.result()
        except BaseException:
            stop.set()
            for job in waiting:
                job.cancel()
            raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
