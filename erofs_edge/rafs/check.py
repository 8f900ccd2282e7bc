# SPDX-License-Identifier: Apache-2.0
"""Check a RAFS v6 image: the bootstrap as an EROFS image, its tables, and the blobs against ids and digests."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from erofs_edge.erofs.check import FINDINGS_MAX, Finding, Report, check
from erofs_edge.erofs.extents import chunk_table
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.ondisk import CHUNK_INDEXES, LAYOUT_CHUNK_BASED
from erofs_edge.erofs.read import PIECE, Image
from erofs_edge.errors import ErofsEdgeError, ErofsFormatError, UsageError
from erofs_edge.names import fsdecode
from erofs_edge.positions import pread
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.decode import can_decode, wrong_chunks
from erofs_edge.rafs.ondisk import BLOCK, Blob, Chunk
from erofs_edge.rafs.read import Rafs, read_rafs

Table = dict[tuple[int, int, int], Chunk]
"""(blob index, number, block) → chunk, as files name it"""


def check_rafs(path: Path, blobs: Sequence[Path] = (), *, jobs: int | None = None) -> Report:
    """Check a bootstrap; `blobs` are all blobs of its table, in order, or none.

    Of what Linux cannot read as a device, compressed chunks are decoded; encrypted blobs and archives are checked as
    far as the tables go. Both give a warning. Raises ErofsEdgeError if a file cannot be read, UsageError for the wrong
    number of blobs or an image that is not a bootstrap.
    """
    try:
        rafs = read_rafs(path)
    except ErofsFormatError as error:
        return Report(findings=[Finding("error", error.message, error.where)])
    if blobs and len(blobs) != len(rafs.blobs):
        raise UsageError(f"the image has {len(rafs.blobs)} blobs, {len(blobs)} are given")
    closed = [blob.place for blob in rafs.blobs if not is_device(blob)]
    further = [
        (ondisk.EXTENDED_AT, 256, "extended superblock"),
        (rafs.blob_table, len(rafs.blobs) * ondisk.BLOB.size, "blob table"),
        (rafs.chunk_table, len(rafs.chunks) * ondisk.CHUNK.size, "chunk table"),
    ]
    report = Report() if closed else check(path, devices=blobs, jobs=jobs, further=further)
    for number in closed:
        blob = rafs.blobs[number]
        what = "decode it: fs blobs --decode" if blobs and can_decode(blob) else "not decoded"
        kind = ondisk.COMPRESSIONS[blob.compression]
        report.findings.append(Finding("warning", f"blob {number} ({kind}) is no device for Linux: {what}"))
    found = _wrong_files(path, rafs)
    for number, blob_path in enumerate(blobs):
        found = _both(found, _wrong_blob(rafs, number, blob_path))
    for finding in found:
        if len(report.findings) >= FINDINGS_MAX:
            break
        report.findings.append(finding)
    return report


def is_device(blob: Blob) -> bool:
    """Whether Linux can use a blob's data in place: uncompressed chunks, aligned to blocks or in an archive."""
    return not blob.compression and not blob.cipher and blob.data <= blob.stored


def _both(one: Iterator[Finding], other: Iterator[Finding]) -> Iterator[Finding]:
    yield from one
    yield from other


def _wrong_files(path: Path, rafs: Rafs) -> Iterator[Finding]:
    """Find files whose chunks are missing from the chunk table or have a different length there."""
    if rafs.is_tarfs:
        return
    table: Table = {(chunk.blob, chunk.number, chunk.address // BLOCK): chunk for chunk in rafs.chunks}
    seen: set[int] = set()
    try:
        with Image(path) as image:
            for name, inode in image.walk():
                if not stat.S_ISREG(inode.mode) or inode.nid in seen:
                    continue
                seen.add(inode.nid)
                message = _wrong_file(image, inode, rafs.chunk_size, table)
                if message is not None:
                    yield Finding("error", message, f"offset {inode.offset:#x}", fsdecode(b"/" + name))
    except ErofsFormatError as error:
        yield Finding("error", error.message, error.where)


def _wrong_file(image: Image, inode: DiskInode, chunk_size: int, table: Table) -> str | None:
    if inode.layout != LAYOUT_CHUNK_BASED or not inode.u & CHUNK_INDEXES:
        return "a file that is not made of chunks, which RAFS does not have"
    at, entry, _, span = chunk_table(image.backing, image.superblock, inode)
    if inode.size and span % chunk_size:
        return f"chunks of {span} bytes in an image whose chunks have {chunk_size}"
    # one entry per chunk of the image, even if EROFS is told a larger chunk size and reads only the first ones
    for number in range(-(-inode.size // chunk_size)):
        raw = image.backing.read(at + number * entry, entry, "chunk table")
        low, high, block = ondisk.CHUNK_ADDRESS.unpack(raw)
        chunk = table.get(((high & 0xFF) - 1, high >> 8 << 16 | low, block))
        if chunk is None:
            return f"chunk {number} is not in the chunk table"
        length = min(chunk_size, inode.size - number * chunk_size)
        if chunk.size != length:
            return f"chunk {number} has {length} bytes in the file, {chunk.size} in the chunk table"
    return None


def _wrong_blob(rafs: Rafs, number: int, path: Path) -> Iterator[Finding]:
    """Find where a blob differs from the tables: its size and id, the digests of its chunks, its own chunk table."""
    blob = rafs.blobs[number]
    chunks = [chunk for chunk in rafs.chunks if chunk.blob == number]
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < blob.stored:
                yield Finding("error", f"blob {number} has {size} bytes, not {blob.stored}", str(path))
                return
            if blob.features & ondisk.BLOB_CAP_TAR_TOC and not _has_id(file.fileno(), blob):
                yield Finding("error", f"blob {number} is the wrong one: its sha256 is not its id", str(path))
            for message in wrong_chunks(blob, chunks, file.fileno()) if can_decode(blob) else ():
                yield Finding("error", message, str(path))
            if not blob.ci_compression and not blob.features & (ondisk.BLOB_TARFS | ondisk.BLOB_CHUNK_INFO_V2):
                yield from _wrong_context(file.fileno(), blob, chunks, path)
    except OSError as error:
        raise ErofsEdgeError(f"cannot read the blob: {error.strerror}", where=str(path)) from error


def _has_id(fd: int, blob: Blob) -> bool:
    state = hashlib.sha256()
    for at in range(0, blob.stored, PIECE):
        state.update(pread(fd, min(PIECE, blob.stored - at), at))
    return state.hexdigest().encode() == blob.id


def _wrong_context(fd: int, blob: Blob, chunks: Sequence[Chunk], path: Path) -> Iterator[Finding]:
    """Check the chunk table inside the blob, and its header."""
    table = pread(fd, blob.ci_size, blob.ci_offset)
    raw = pread(fd, ondisk.CONTEXT_HEADER_SIZE, blob.ci_offset + blob.ci_stored)
    if len(table) != blob.ci_size or len(raw) != ondisk.CONTEXT_HEADER_SIZE:
        yield Finding("error", f"blob {blob.place} ends before its own table of chunks does", str(path))
        return
    first, _, compression, entries, offset, stored, size, *_, last = ondisk.CONTEXT_HEADER.unpack(raw)
    said = (first, last, compression, entries, offset, stored, size)
    magic = ondisk.CONTEXT_MAGIC
    if said != (magic, magic, blob.ci_compression, blob.chunks, blob.ci_offset, blob.ci_stored, blob.ci_size):
        yield Finding("error", f"the header in blob {blob.place} is not what the bootstrap says of it", str(path))
        return
    for chunk in chunks if is_device(blob) else ():
        at = chunk.number * ondisk.CONTEXT_V1_SIZE
        if table[at : at + ondisk.CONTEXT_V1_SIZE] != ondisk.context_record(chunk.offset, chunk.size):
            yield Finding("error", f"blob {blob.place} says something else of chunk {chunk.number}", str(path))
