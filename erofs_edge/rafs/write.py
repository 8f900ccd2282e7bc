# SPDX-License-Identifier: Apache-2.0
"""Write RAFS v6: a bootstrap, and a blob with what no earlier image has.

The chunks of the blob are stored uncompressed, each aligned to a block, so the blob can be used as a device: Linux
mounts bootstrap and blobs without any part of Nydus. After the chunks comes what Nydus reads from a blob. Chunks of an
earlier image are not stored again; its blobs become extra devices of this image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.output import Sink, replacing
from erofs_edge.erofs.plan import Node, Plan, make_plan
from erofs_edge.errors import CapacityError, ErofsEdgeError, UsageError
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.bootstrap import Settled, encode_bootstrap
from erofs_edge.rafs.ondisk import BLOCK, Blob, Chunk
from erofs_edge.rafs.read import Rafs, read_rafs
from erofs_edge.tree import FileTree

CHUNK_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RafsOptions:
    """How an image is written.

    chunk_size  bytes, a power of two from 4 KiB to 16 MiB
    bases       bootstraps of earlier images: their chunks are not stored again
    epoch       the image's own time in seconds since 1970; None: the tree's most frequent mtime
    times       'keep' the tree's mtimes; 'fixed': set all to `epoch`; 'clamp': set those after `epoch` to it
    all_root    set owner and group of everything to 0
    progress    called with (done, total) in bytes of content
    """

    chunk_size: int = CHUNK_SIZE
    bases: tuple[Path, ...] = ()
    epoch: int | None = None
    times: str = "keep"
    all_root: bool = False
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a chunk size that the format does not support."""
        size = self.chunk_size
        if size & size - 1 or not ondisk.CHUNK_MIN <= size <= ondisk.CHUNK_MAX:
            raise UsageError(f"chunks of {size} bytes", hint="a power of two from 4096 to 16 MiB")


@dataclass(frozen=True, slots=True)
class RafsInfo:
    """What was written. `blobs` are the ids in device order; `blob` is the path of the new one, None if there is none.

    size, blob_size, uncompressed   bytes of the bootstrap, of the new blob, of all files
    chunks, new, reused             number of chunks of all files, in the new blob, and in other blobs
    """

    path: Path
    size: int
    blobs: tuple[str, ...]
    blob: Path | None
    blob_size: int
    inodes: int
    uncompressed: int
    chunks: int
    new: int
    reused: int


class _Known(NamedTuple):
    """A chunk that exists already: in the blob `owner`, or in the new blob (None)."""

    owner: bytes | None
    chunk: Chunk


@dataclass(slots=True)
class _Store:
    """Takes files chunk by chunk, and records which chunks were stored and where each file's chunks are."""

    sink: Sink
    chunk_size: int
    known: dict[tuple[bytes, int], _Known]
    chunks: list[Chunk] = field(default_factory=list)
    files: dict[Node, list[_Known]] = field(default_factory=dict)

    def take(self, node: Node) -> None:
        """Raises SourceError if the content cannot be read, CapacityError if it is too much for a blob."""
        content = node.inode.content
        assert content is not None  # noqa: S101 - it has a size
        found = self.files[node] = []
        for offset in range(0, node.size, self.chunk_size):
            data = content.read(offset, min(self.chunk_size, node.size - offset))
            key = hashlib.sha256(data).digest(), len(data)
            if key not in self.known:
                self.known[key] = _Known(None, self._append(key[0], data, offset))
            found.append(self.known[key])

    def _append(self, digest: bytes, data: bytes, file_offset: int) -> Chunk:
        at, number = self.sink.position, len(self.chunks)
        if number == ondisk.CHUNKS_MAX or at + len(data) > ondisk.STORED_MAX - BLOCK:
            raise CapacityError("more than a blob can have", hint="larger chunks, or a base for a part of it")
        self.sink.append([data, bytes(-len(data) % BLOCK)])
        chunk = Chunk(digest, 0, 0, len(data), len(data), at, at, file_offset, number)
        self.chunks.append(chunk)
        return chunk


def write_rafs(tree: FileTree, out: Path, blob_dir: Path, options: RafsOptions | None = None) -> RafsInfo:
    """Write a bootstrap to `out`, and its new blob to `blob_dir`, named by sha256. The same tree gives the same bytes.

    Raises SourceError for what cannot be read or stored, UsageError for unusable bases, CapacityError if there is not
    enough space or there are too many blobs.
    """
    options = options or RafsOptions()
    bases = [read_rafs(path) for path in options.bases]
    for base in bases:
        _check_base(base, options)
    plan = make_plan(tree, _plain(options))
    known = {
        (chunk.digest, chunk.size): _Known(base.blobs[chunk.blob].id, chunk)
        for base in reversed(bases)
        for chunk in reversed(base.chunks)
    }
    if not blob_dir.is_dir():
        raise UsageError("the folder for the blobs does not exist", where=str(blob_dir))
    temporary = blob_dir / f".{out.name}.blob"
    with replacing(out) as bootstrap:  # first, so that no blob is left behind if it cannot be written
        with replacing(temporary, hashing=True) as sink:
            store = _Store(sink, options.chunk_size, known)
            _store_files(plan, store, options)
            new = _finish_blob(sink, store.chunks, options.chunk_size)
        new_path = _named(temporary, new)
        settled = _settle(store, bases, new)
        data, blocks = encode_bootstrap(plan, settled, options.chunk_size)
        bootstrap.append([data])
        bootstrap.finish(len(data))
    return RafsInfo(
        path=out,
        size=blocks * BLOCK,
        blobs=tuple(blob.id.decode() for blob in settled.blobs),
        blob=new_path,
        blob_size=new.stored if new else 0,
        inodes=len(plan.nodes),
        uncompressed=sum(node.size for node in plan.files),
        chunks=sum(map(len, store.files.values())),
        new=len(store.chunks),
        reused=len(settled.chunks) - len(store.chunks),
    )


def _plain(options: RafsOptions) -> WriteOptions:
    """Options for EROFS: extended inodes, which keep their times; Nydus does not show those of others."""
    return WriteOptions(
        compression="none",
        inode_form="extended",
        epoch=options.epoch,
        times=options.times,  # type: ignore[arg-type]
        all_root=options.all_root,
        checksum=False,
    )


def _check_base(base: Rafs, options: RafsOptions) -> None:
    if base.chunk_size != options.chunk_size:
        raise UsageError(
            f"the base has chunks of {base.chunk_size} bytes, this image has {options.chunk_size}", where=str(base.path)
        )
    for blob in base.blobs:
        if blob.compression or ondisk.DIGESTS[blob.digest] != "sha256" or blob.cipher:
            raise UsageError(
                f"blob {blob.id.decode()} of the base is compressed, encrypted or has no sha256 of its chunks",
                where=str(base.path),
                hint="bases are images that erofs-edge wrote",
            )
    for chunk in base.chunks:
        if chunk.offset != chunk.address:
            raise UsageError(
                "a chunk of the base does not lie on a block, so Linux cannot read it there", where=str(base.path)
            )


def _store_files(plan: Plan, store: _Store, options: RafsOptions) -> None:
    done, total = 0, sum(node.size for node in plan.files)
    for node in plan.files:
        store.take(node)
        done += node.size
        if options.progress:
            options.progress(done, total)


def _finish_blob(sink: Sink, chunks: Sequence[Chunk], chunk_size: int) -> Blob | None:
    """Complete the blob and return its entry, whose place in the table is still open; None if it is empty."""
    data = sink.position
    table = b"".join(ondisk.context_record(chunk.offset, chunk.size) for chunk in chunks)
    features = ondisk.BLOB_ALIGNED | ondisk.BLOB_CAP_TAR_TOC
    header = ondisk.CONTEXT_HEADER.pack(
        ondisk.CONTEXT_MAGIC, features, 0, len(chunks), data, len(table), len(table), 0, 0, 0, ondisk.CONTEXT_MAGIC
    )
    sink.append([table, header])
    sink.append([bytes(-sink.position % BLOCK)])  # loop devices consist of whole sectors
    sink.finish(sink.position)
    if not chunks:
        return None
    assert sink.hashing is not None  # noqa: S101 - it was opened with one
    return Blob(
        id=sink.hashing.digest().hex().encode(),
        place=0,
        chunk_size=chunk_size,
        chunks=len(chunks),
        compression=0,
        digest=ondisk.DIGESTS.index("sha256"),
        features=features,
        stored=sink.position,
        data=data,
        toc_size=0,
        ci_compression=0,
        ci_offset=data,
        ci_stored=len(table),
        ci_size=len(table),
    )


def _named(temporary: Path, blob: Blob | None) -> Path | None:
    """Rename the blob to its id. Without chunks, remove it."""
    try:
        if blob is None:
            temporary.unlink()
            return None
        return temporary.rename(temporary.with_name(blob.id.decode()))
    except OSError as error:
        raise ErofsEdgeError(f"cannot name the blob: {error.strerror}", where=str(temporary)) from error


def _settle(store: _Store, bases: Sequence[Rafs], new: Blob | None) -> Settled:
    """Assign places to blobs: those of the bases that are used, in order, then the new one. Raises CapacityError."""
    wanted = {known.owner for chunks in store.files.values() for known in chunks}
    blobs: dict[bytes, Blob] = {}
    for base in bases:
        for blob in base.blobs:
            if blob.id in wanted:
                blobs.setdefault(blob.id, blob)
    if new is not None:
        blobs.setdefault(new.id, new)
    if len(blobs) > ondisk.BLOBS_MAX:
        raise CapacityError(f"{len(blobs)} blobs are more than the {ondisk.BLOBS_MAX} that an image can have")
    places = {name: index for index, name in enumerate(blobs)}

    def settled(known: _Known) -> Chunk:
        owner = known.owner if known.owner is not None else new.id if new else b""
        return known.chunk._replace(blob=places[owner])

    files = {node: [settled(known) for known in chunks] for node, chunks in store.files.items()}
    every = {(chunk.blob, chunk.number): chunk for chunks in files.values() for chunk in chunks}
    return Settled(
        [blob._replace(place=index) for index, blob in enumerate(blobs.values())],
        [chunk for _, chunk in sorted(every.items())],
        files,
    )
