# SPDX-License-Identifier: Apache-2.0
"""Decode the blobs of a RAFS v6 image, so that Linux has devices to mount it with.

Nydus's daemon does the same into its cache: each chunk of the chunk table is decoded to its address. Sources, in
Nydus's repository: ``utils/src/compress/mod.rs`` (the codecs), ``storage/src/device.rs`` (features of blobs).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from erofs_edge.codec import lz4, zstd
from erofs_edge.erofs.output import replacing
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, FormatError, UsageError
from erofs_edge.positions import READ, pread
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.blake3 import blake3
from erofs_edge.rafs.ondisk import Blob, Chunk
from erofs_edge.rafs.read import Rafs

_ELSEWHERE = ondisk.BLOB_ZRAN | ondisk.BLOB_BATCH | ondisk.BLOB_ENCRYPTED | ondisk.BLOB_TARFS
"""features with which a chunk is not a separate stream at the place given by the chunk table"""
_GZIP = 16 + zlib.MAX_WBITS
_STORED_MAX = ondisk.CHUNK_MAX + (64 << 10)
"""bytes: no codec makes a chunk larger than that"""


def can_decode(blob: Blob) -> bool:
    """Whether each chunk of a blob is a separate stream: not an unmodified archive, no batches, nothing encrypted."""
    return not blob.features & _ELSEWHERE and not blob.cipher


def decode_chunk(blob: Blob, chunk: Chunk, stored: bytes) -> bytes:
    """Decode a chunk to `chunk.size` bytes from the `chunk.stored` bytes in the blob.

    Allocates at most a few times that. Raises FormatError if they do not decode or do not match the digest.
    """
    codec = ondisk.COMPRESSIONS[blob.compression] if chunk.flags & ondisk.CHUNK_COMPRESSED else "none"
    if chunk.flags & ~(ondisk.CHUNK_COMPRESSED | ondisk.CHUNK_HAS_CRC32):
        raise FormatError(f"is stored in an unknown way (flags {chunk.flags:#x})")
    if codec == "none":
        data = stored
    elif codec == "lz4_block":
        data = lz4.decompress(stored, chunk.size)
    elif codec == "zstd":
        data = zstd.decompress(stored, chunk.size)
    else:
        data = _gunzip(stored, chunk.size)
    if len(data) != chunk.size:
        raise FormatError(f"has {len(data)} bytes, not {chunk.size}")
    if _DIGESTS[ondisk.DIGESTS[blob.digest]](data) != chunk.digest:
        raise FormatError("does not match its digest")
    return data


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


_DIGESTS: dict[str, Callable[[bytes], bytes]] = {"sha256": _sha256, "blake3": blake3}


def _gunzip(stored: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(_GZIP).decompress(stored, size + 1)
    except zlib.error as error:
        raise FormatError(f"gzip stream of {len(stored)} bytes is corrupt: {error}") from error


def _read(fd: int, blob: Blob, chunk: Chunk) -> bytes:
    """Return the decoded bytes of a chunk of an open blob. Raises FormatError, and OSError if it cannot be read."""
    if chunk.stored > _STORED_MAX:
        raise FormatError(f"has {chunk.stored} bytes for {chunk.size}")
    return decode_chunk(blob, chunk, pread(fd, chunk.stored, chunk.offset))


def wrong_chunks(blob: Blob, chunks: Sequence[Chunk], fd: int) -> Iterator[str]:
    """Describe what is wrong with the chunks of an open blob. Raises OSError if it cannot be read."""
    for chunk in chunks:
        try:
            _read(fd, blob, chunk)
        except FormatError as error:
            yield f"chunk {chunk.number} of blob {blob.place} {error.message}"


def decode_blobs(rafs: Rafs, folder: Path, out: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Decode the blobs of an image into devices: for each blob in `folder`, named by its id, a file of the same name in
    `out`. Return these in the order of the table. Where no file has a chunk, there are holes.

    progress  called with (done, total) bytes

    Raises ErofsFormatError for a chunk that does not match the tables, UsageError for unsupported blobs or identical
    folders, ErofsEdgeError if a file cannot be read, CapacityError if there is not enough space.
    """
    for path in (folder, out):
        if not path.is_dir():
            raise UsageError("the folder for the blobs does not exist", where=str(path))
    if folder.samefile(out):
        raise UsageError("the decoded blobs would take the place of the blobs", where=str(out))
    for blob in rafs.blobs:
        if not can_decode(blob):
            raise UsageError(
                f"blob {blob.place} is encrypted, in batches or an archive: its chunks are not decoded one by one",
                where=str(rafs.path),
            )
    done, total = 0, sum(chunk.size for chunk in rafs.chunks)
    made = []
    for blob in rafs.blobs:
        source = folder / blob.id.decode()
        for size in _decode_blob(blob, [c for c in rafs.chunks if c.blob == blob.place], source, out):
            done += size
            if progress:
                progress(done, total)
        made.append(out / source.name)
    return made


def _decode_blob(blob: Blob, chunks: Sequence[Chunk], source: Path, out: Path) -> Iterator[int]:
    """Decode one blob. Yield the size of each chunk when it is done."""
    try:
        fd = os.open(source, READ)
    except OSError as error:
        raise ErofsEdgeError(f"cannot open the blob: {error.strerror}", where=str(source)) from error
    try:
        with replacing(out / source.name) as sink:
            for chunk in chunks:
                try:
                    data = _read(fd, blob, chunk)
                except FormatError as error:
                    raise ErofsFormatError(f"chunk {chunk.number} {error.message}", where=str(source)) from error
                except OSError as error:
                    raise ErofsEdgeError(f"cannot read the blob: {error.strerror}", where=str(source)) from error
                sink.write_at(chunk.address, data)
                yield chunk.size
            sink.finish(blob.data)
    finally:
        os.close(fd)
