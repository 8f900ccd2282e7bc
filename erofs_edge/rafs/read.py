# SPDX-License-Identifier: Apache-2.0
"""Read what a RAFS v6 bootstrap contains beyond EROFS: its blobs and chunks. Every field is checked.

Files and directories are read like those of any EROFS image with several devices (erofs/read.py), unless the blobs are
compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.ondisk import DEVICE_SLOT, SUPER_OFFSET
from erofs_edge.erofs.superblock import SuperInfo, read_superblock
from erofs_edge.errors import UsageError
from erofs_edge.rafs import ondisk
from erofs_edge.rafs.ondisk import BLOCK, Blob, Chunk, Extended

_TAR_BLOCK_BITS = 9  # for images whose data is an unmodified archive


@dataclass(frozen=True, slots=True)
class Rafs:
    """A bootstrap. `flags` as in ondisk.py; `prefetch` are the nids of files to read ahead."""

    path: Path
    superblock: SuperInfo
    flags: int
    chunk_size: int
    blobs: tuple[Blob, ...]
    chunks: tuple[Chunk, ...]
    prefetch: tuple[int, ...] = ()
    blob_table: int = 0
    chunk_table: int = 0
    """both: byte offsets in the bootstrap"""

    @property
    def is_tarfs(self) -> bool:
        """Whether the blobs are archives, whose chunks have neither number nor digest."""
        return bool(self.flags & ondisk.FLAG_TARFS)


def read_rafs(path: Path) -> Rafs:
    """Read a bootstrap. Raises ErofsEdgeError if the file cannot be read, UsageError for an EROFS image that is not a
    bootstrap, ErofsFormatError if it violates the format."""
    backing = Backing(path)
    try:
        info = read_superblock(backing)
        if not info.is_rafs:
            raise UsageError("an EROFS image, but not the bootstrap of a RAFS image", where=str(path))
        extended = Extended(*backing.unpack(ondisk.EXTENDED, ondisk.EXTENDED_AT, "extended superblock"))
        _check_superblock(info, extended)
        _check_places(info, extended)
        blobs = _blobs(backing, info, extended)
        chunks = _chunks(backing, extended, blobs)
        prefetch = b""
        if extended.prefetch_table_offset:
            prefetch = backing.read(extended.prefetch_table_offset, extended.prefetch_table_size, "prefetch table")
    finally:
        backing.close()
    nids = tuple(int.from_bytes(prefetch[at : at + 4], "little") for at in range(0, len(prefetch), 4))
    return Rafs(
        path=path,
        superblock=info,
        flags=extended.flags,
        chunk_size=extended.chunk_size,
        blobs=blobs,
        chunks=chunks,
        prefetch=nids,
        blob_table=extended.blob_table_offset,
        chunk_table=extended.chunk_table_offset,
    )


def _check_superblock(info: SuperInfo, extended: Extended) -> None:
    """Check what Nydus requires of the superblocks."""
    raw, at = info.raw, SUPER_OFFSET
    tarfs = bool(extended.flags & ondisk.FLAG_TARFS)
    if raw.blkszbits != (_TAR_BLOCK_BITS if tarfs else BLOCK.bit_length() - 1):
        raise broken(f"a bootstrap with blocks of 2**{raw.blkszbits} bytes", at + 12)
    if raw.feature_incompat != ondisk.INCOMPAT:
        raise broken(f"a bootstrap with features {raw.feature_incompat:#x}, not {ondisk.INCOMPAT:#x}", at + 80)
    for value, name, offset in (
        (raw.checksum, "a checksum", 4),
        (raw.sb_extslots, "extension slots", 13),
        (raw.xattr_blkaddr, "shared attributes", 44),
        (raw.u1, "codecs", 84),
    ):
        if value:
            raise broken(f"a bootstrap with {name}", at + offset)
    if not raw.inos:
        raise broken("a bootstrap without inodes", at + 16)
    if raw.devt_slotoff * DEVICE_SLOT.size != ondisk.DEVICES_AT:
        raise broken(f"device slots at byte {raw.devt_slotoff * DEVICE_SLOT.size}, not {ondisk.DEVICES_AT}", at + 88)
    at = ondisk.EXTENDED_AT
    for bits, name in (
        (ondisk.FLAG_COMPRESSION, "compression"),
        (ondisk.FLAG_DIGEST, "digest"),
    ):
        if (extended.flags & sum(bits)).bit_count() != 1:
            raise broken(f"flags {extended.flags:#x} name not one {name}", at)
    if (extended.flags & sum(ondisk.FLAG_CIPHER)).bit_count() > 1 or extended.flags & ~ondisk.FLAGS_KNOWN:
        raise broken(f"unknown flags {extended.flags:#x}", at)
    size = extended.chunk_size
    if size & size - 1 or not ondisk.CHUNK_MIN <= size <= ondisk.CHUNK_MAX:
        raise broken(f"chunks of {size} bytes", at + 20)


def _check_places(info: SuperInfo, extended: Extended) -> None:
    """Check that the three tables are inside the bootstrap, after the device slots, and do not overlap."""
    slots_end = ondisk.DEVICES_AT + info.raw.extra_devices * DEVICE_SLOT.size
    taken: list[tuple[int, int, str]] = []
    for name, at, size, record, step, field in (
        ("blob table", extended.blob_table_offset, extended.blob_table_size, ondisk.BLOB.size, BLOCK, 8),
        ("chunk table", extended.chunk_table_offset, extended.chunk_table_size, ondisk.CHUNK.size, BLOCK, 24),
        # old images state a size without having a table
        ("prefetch table", extended.prefetch_table_offset, extended.prefetch_table_size, 4, 4, 40),
    ):
        where = ondisk.EXTENDED_AT + field
        if not size or (name == "prefetch table" and not at):
            continue
        if at % step or size % record or at < max(BLOCK, slots_end) or at + size > info.size:
            raise broken(f"{name} of {size} bytes at byte {at}", where)
        for start, end, other in taken:
            if at < end and start < at + size:
                raise broken(f"{name} and {other} overlap", where)
        taken.append((at, at + size, name))
    if extended.blob_table_size != info.raw.extra_devices * ondisk.BLOB.size:
        raise broken(
            f"{info.raw.extra_devices} devices, a blob table of {extended.blob_table_size} bytes",
            ondisk.EXTENDED_AT + 16,
        )


def _blobs(backing: Backing, info: SuperInfo, extended: Extended) -> tuple[Blob, ...]:
    table = backing.read(extended.blob_table_offset, extended.blob_table_size, "blob table") if info.devices else b""
    blobs = tuple(Blob(*fields) for fields in ondisk.BLOB.iter_unpack(table))
    seen = set()
    for number, (blob, slot) in enumerate(zip(blobs, info.devices, strict=True)):
        where = extended.blob_table_offset + number * ondisk.BLOB.size
        what = next(_faults_of_blob(blob, number, extended), None)
        if what is None and (slot.tag != blob.id or blob.id in seen):
            what = "has another name than its device, or that of another blob"
        # an archive's size is counted in its own small blocks
        if what is None and slot.blocks != blob.data // info.block_size:
            what = f"has {blob.data} bytes of data, its device {slot.blocks} blocks"
        if what is not None:
            raise broken(f"blob {number} {what}", where)
        seen.add(blob.id)
    return blobs


def _faults_of_blob(blob: Blob, number: int, extended: Extended) -> Iterator[str]:
    """Yield what is wrong with an entry of the blob table."""
    if blob.place != number:
        yield f"has the index {blob.place}"
    if not (blob.id.isascii() and blob.id.isalnum()):  # it becomes a file name
        yield "has an impossible id"
    if blob.chunk_size != extended.chunk_size or blob.chunks > ondisk.CHUNKS_MAX:
        yield f"has {blob.chunks} chunks of {blob.chunk_size} bytes"
    if max(blob.compression, blob.ci_compression) >= len(ondisk.COMPRESSIONS) or blob.digest >= len(ondisk.DIGESTS):
        yield "has an unknown compression or digest"
    if blob.cipher >= len(ondisk.CIPHERS):
        yield f"has the unknown cipher {blob.cipher}"
    if blob.data > ondisk.DATA_MAX or blob.stored > ondisk.STORED_MAX or not blob.data:
        yield f"has {blob.stored} bytes for {blob.data}"
    if blob.features & ondisk.BLOB_REFUSED:
        yield f"has unknown features {blob.features:#x}"
    tarfs = bool(extended.flags & ondisk.FLAG_TARFS)
    if bool(blob.features & ondisk.BLOB_ALIGNED) is tarfs:
        yield f"has features {blob.features:#x}, of which the first does not fit the image"
    if not tarfs:
        yield from _faults_of_context(blob)


def _faults_of_context(blob: Blob) -> Iterator[str]:
    """Yield what is wrong with the sizes of the chunk table inside a blob."""
    if blob.ci_stored > blob.ci_size or blob.ci_offset + blob.ci_stored > ondisk.STORED_MAX:
        yield f"has a table of {blob.ci_stored} bytes for {blob.ci_size} at byte {blob.ci_offset}"
    more = blob.features & (ondisk.BLOB_BATCH | ondisk.BLOB_ZRAN | ondisk.BLOB_ENCRYPTED)
    wide = blob.features & ondisk.BLOB_CHUNK_INFO_V2
    size = blob.chunks * (ondisk.CONTEXT_V2_SIZE if wide else ondisk.CONTEXT_V1_SIZE)
    if blob.features & ondisk.BLOB_CHUNKDICT and not wide:
        return
    if (more and not wide) or (blob.ci_size < size if more else blob.ci_size != size):
        yield f"has a table of {blob.ci_size} bytes for {blob.chunks} chunks"


def _chunks(backing: Backing, extended: Extended, blobs: tuple[Blob, ...]) -> tuple[Chunk, ...]:
    if not extended.chunk_table_size:
        return ()
    table = backing.read(extended.chunk_table_offset, extended.chunk_table_size, "chunk table")
    chunks = tuple(Chunk(*fields) for fields in ondisk.CHUNK.iter_unpack(table))
    for number, chunk in enumerate(chunks):
        what = next(_faults_of_chunk(chunk, blobs, extended), None)
        if what is not None:
            raise broken(f"chunk {number} {what}", extended.chunk_table_offset + number * ondisk.CHUNK.size)
    return chunks


def _faults_of_chunk(chunk: Chunk, blobs: tuple[Blob, ...], extended: Extended) -> Iterator[str]:
    """Yield what is wrong with an entry of the chunk table."""
    if chunk.blob >= len(blobs):
        yield f"is in blob {chunk.blob}, which does not exist"
        return
    blob = blobs[chunk.blob]
    if chunk.number >= blob.chunks and not blob.features & ondisk.BLOB_CHUNKDICT:
        yield f"has the number {chunk.number} in a blob of {blob.chunks}"
    if chunk.flags & ~ondisk.CHUNK_FLAGS_KNOWN:
        yield f"has unknown flags {chunk.flags:#x}"
    if not 1 <= chunk.size <= extended.chunk_size or chunk.address + chunk.size > blob.data:
        yield f"has {chunk.size} bytes at byte {chunk.address} of {blob.data}"
    if blob.features & ondisk.BLOB_ALIGNED and chunk.address % BLOCK:
        yield f"does not start on a block, at byte {chunk.address}"
    if chunk.offset + chunk.stored > blob.stored or not chunk.stored:
        yield f"has {chunk.stored} bytes at byte {chunk.offset} of a blob of {blob.stored}"
    if not chunk.flags and chunk.stored != chunk.size:
        yield f"is not compressed, and has {chunk.stored} bytes for {chunk.size}"
