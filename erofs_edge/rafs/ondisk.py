# SPDX-License-Identifier: Apache-2.0
"""RAFS v6 on-disk structures: what Nydus adds to EROFS. Everything is little-endian.

Sources, in Nydus's repository: ``rafs/src/metadata/layout/v6.rs`` (superblocks, device slots, blob table, chunk
addresses), ``layout/v5.rs`` (chunk table), ``storage/src/device.rs`` (features of blobs) and ``storage/src/meta`` (what
follows the chunks of a blob). Offsets in comments are in bytes.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from erofs_edge.erofs.ondisk import COMPAT_RAFS_V6, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE

COMPAT = COMPAT_RAFS_V6
INCOMPAT = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE  # exactly these
BLOCK = 4096
EXTENDED_AT = 1024 + 128
DEVICES_AT = EXTENDED_AT + 256
CHUNK_MIN, CHUNK_MAX = BLOCK, 16 << 20
CHUNKS_MAX = 1 << 24  # of a blob
BLOBS_MAX = 254
DATA_MAX, STORED_MAX = 1 << 44, 1 << 40  # maximum bytes of a blob: decoded, stored
MAP_ALIGN = 512 << 10  # alignment of the addresses of blobs after the bootstrap

# s_flags
FLAG_COMPRESSION = {0x01: "none", 0x02: "lz4_block", 0x40: "gzip", 0x80: "zstd"}
FLAG_DIGEST = {0x04: "blake3", 0x08: "sha256"}
FLAG_EXPLICIT_UID_GID = 0x10
FLAG_HAS_XATTR = 0x20
FLAG_INLINED_CHUNK_DIGEST = 0x100
FLAG_TARFS = 0x200
FLAG_CIPHER = {0x0100_0000: "none", 0x0200_0000: "aes-128-xts"}
FLAGS_RESERVED = 0xFC00_0000
FLAGS_KNOWN = (
    sum(FLAG_COMPRESSION)
    | sum(FLAG_DIGEST)
    | sum(FLAG_CIPHER)
    | FLAG_EXPLICIT_UID_GID
    | FLAG_HAS_XATTR
    | FLAG_INLINED_CHUNK_DIGEST
    | FLAG_TARFS
    | FLAGS_RESERVED
)

COMPRESSIONS = ("none", "lz4_block", "gzip", "zstd")  # by number
DIGESTS = ("blake3", "sha256")
CIPHERS = ("none", "aes-128-xts", "aes-256-xts", "aes-256-gcm")

# features of a blob
BLOB_ALIGNED = 0x01
BLOB_CHUNK_INFO_V2 = 0x04
BLOB_ZRAN = 0x08
BLOB_TARFS = 0x40
BLOB_BATCH = 0x80
BLOB_ENCRYPTED = 0x100
BLOB_CHUNKDICT = 0x200
BLOB_CAP_TAR_TOC = 0x4000_0000  # the id is the digest of the whole blob: Nydus 2.2 and later
BLOB_REFUSED = 0xF000 | 0x8000_0000

# flags of a chunk
CHUNK_COMPRESSED = 0x01
CHUNK_HAS_CRC32 = 0x10
CHUNK_FLAGS_KNOWN = 0x1F


class Extended(NamedTuple):
    """struct RafsV6SuperBlockExt, 256 bytes after the superblock, of which 200 are reserved."""

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int = 0
    prefetch_table_size: int = 0
    padding: int = 0


EXTENDED = Struct("<QQIIQQQII")


class Blob(NamedTuple):
    """struct RafsV6Blob, 256 bytes.

    id               64 characters; for a separate blob, the sha256 of all its bytes
    place            its index in the table
    stored, data     bytes: of the blob as stored, and of its decoded chunks, in whole blocks
    ci_*             location of the chunk table in the blob, its compression and its sizes
    toc_*, meta_*    describe optional further parts of a blob
    """

    id: bytes
    place: int
    chunk_size: int
    chunks: int
    compression: int
    digest: int
    features: int
    stored: int
    data: int
    toc_size: int
    ci_compression: int
    ci_offset: int
    ci_stored: int
    ci_size: int
    toc_digest: bytes = bytes(32)
    meta_digest: bytes = bytes(32)
    meta_size: int = 0
    cipher_iv: bytes = bytes(8)
    cipher: int = 0


BLOB = Struct("<64sIIIIIIQQIIQQQ32s32sQ8sI36x")


class Chunk(NamedTuple):
    """struct RafsV5ChunkInfo, 80 bytes: a chunk, in the table at the end of the bootstrap.

    digest           of its decoded bytes
    blob             index in the blob table
    stored, size     bytes, as stored in the blob and decoded
    offset           in the stored blob
    address          on the device, decoded, aligned to a block
    file_offset      in the first file that has it; never used
    number           of the chunk in its blob, from 0
    """

    digest: bytes
    blob: int
    flags: int
    stored: int
    size: int
    offset: int
    address: int
    file_offset: int
    number: int
    crc32: int = 0


CHUNK = Struct("<32sIIIIQQQII")
CHUNK_ADDRESS = Struct("<HHI")  # low 16 bits of the chunk's number; its high 8 bits and (blob index + 1); block

# after the chunks of a blob: a record for each chunk, then a header of one block
CONTEXT_V1 = Struct("<QQ")
CONTEXT_V1_SIZE, CONTEXT_V2_SIZE = 16, 24
CONTEXT_MAGIC = 0xB10BB10B
CONTEXT_HEADER = Struct("<IIIIQQQQQI4032xI")  # magic, features, compression, entries, offset, sizes, 3 of zran, magic
CONTEXT_HEADER_SIZE = 4096


def context_record(offset: int, size: int) -> bytes:
    """Encode the record of an uncompressed chunk: sizes minus one, in 20 low and 4 high bits, and offsets."""
    low, high = size - 1 & 0xFFFFF, size - 1 >> 20
    return CONTEXT_V1.pack(low << 44 | offset | high << 8, low << 44 | high << 40 | offset)


def chunk_address(blob: int, number: int, block: int) -> bytes:
    """Encode a file's reference to a chunk. EROFS sees a device number, under a mask, and the block there."""
    return CHUNK_ADDRESS.pack(number & 0xFFFF, number >> 16 << 8 | blob + 1, block)


if (EXTENDED.size, BLOB.size, CHUNK.size, CONTEXT_HEADER.size) != (56, 256, 80, CONTEXT_HEADER_SIZE):
    raise AssertionError("a wrong struct must not import")
