# SPDX-License-Identifier: Apache-2.0
"""A squashfs image of one flat folder of files, uncompressed: the payload of a RAUC bundle.

RAUC only mounts payloads as squashfs (rauc ``src/mount.c``). Their content is compressed already, so blocks are stored
unchanged, and each file starts at a multiple of 4096 bytes: reading one block of a file over the network reads those
bytes and no others.

Source: squashfs 4.0 as Linux ``fs/squashfs/squashfs_fs.h`` and ``super.c`` read it; everything is little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack

from erofs_edge.errors import FormatError

MAGIC = 0x73717368
ALIGN = 4096  # bytes: alignment of files and of the image's end
BLOCK_MIN, BLOCK_MAX = 4096, 1 << 20
_METADATA = 8192  # bytes of a metadata block
_UNCOMPRESSED = 1 << 15  # flag in the length of a metadata block
_DATA_UNCOMPRESSED = 1 << 24  # flag in the length of a data block
_NONE = 0xFFFF_FFFF
_NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
_ZLIB = 1  # the decompressor of every kernel with squashfs; it is never used
# uncompressed inodes, data, fragments and ids; no fragments; no xattrs
_FLAGS = 0x0001 | 0x0002 | 0x0008 | 0x0010 | 0x0200 | 0x0800
_FILE, _DIRECTORY, _LONG_FILE = 2, 1, 9
_LISTED_MAX = 256  # entries per header in a directory


@dataclass(frozen=True, slots=True)
class Payload:
    """`head` are the first bytes; `places`: name → offset of its content; `tail` is at byte `tables`, and the image is
    `size` bytes long. Bytes in between that belong to no file are zeros."""

    head: bytes
    places: dict[str, int]
    tables: int
    tail: bytes
    size: int


def squashfs(files: Sequence[tuple[str, int]], *, epoch: int, block_size: int = ALIGN) -> Payload:
    """The layout of an image of these (name, size in bytes), owned by root, world-readable, dated `epoch`.

    block_size  bytes, a power of two; kernels with larger pages cannot mount the image

    Raises FormatError for an invalid block size, names that a folder cannot contain, and for no files at all.
    """
    if block_size & (block_size - 1) or not BLOCK_MIN <= block_size <= BLOCK_MAX:
        raise FormatError(f"a squashfs block of {block_size} bytes: 4096 to 1048576, a power of two")
    names = sorted((name for name, _ in files), key=str.encode)
    if not names or len(set(names)) != len(names) or len(names) > _LISTED_MAX or not all(map(_is_name, names)):
        raise FormatError("the files of a bundle need names, each its own, without a slash")
    sizes, places, position = dict(files), {}, ALIGN
    for name, size in files:
        places[name] = position
        position += -(-size // ALIGN) * ALIGN
    inodes, offsets = b"", []
    for number, name in enumerate(names, 1):
        offsets.append(len(inodes))
        inodes += _file(number, places[name], sizes[name], epoch, block_size)
    listing = _listing(names, offsets)
    root = len(inodes)
    inodes += pack(
        "<HHHHIIIIHHI", _DIRECTORY, 0o755, 0, 0, epoch, len(names) + 1, 0, 2, len(listing) + 3, 0, len(names) + 2
    )
    stored, listed, ids = _stored(inodes), _stored(listing), _stored(pack("<I", 0))
    directories = position + len(stored)
    owners = directories + len(listed)
    end = owners + len(ids) + 8
    head = pack(
        "<IIIIIHHHHHHQQQQQQQQ", MAGIC, len(names) + 1, epoch, block_size, 0, _ZLIB, block_size.bit_length() - 1,
        _FLAGS, 1, 4, 0, _reference(root), end, end - 8, _NOWHERE, position, directories, owners, _NOWHERE,
    )  # fmt: skip
    tail = stored + listed + ids + pack("<Q", owners)
    return Payload(head, places, position, tail, -(-end // ALIGN) * ALIGN)


def _is_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..") and len(name.encode()) < 256


def _file(number: int, start: int, size: int, epoch: int, block_size: int) -> bytes:
    """An inode of the long form, with a list of the sizes of its data blocks."""
    whole, rest = divmod(size, block_size)
    lengths = pack("<I", block_size | _DATA_UNCOMPRESSED) * whole
    if rest:
        lengths += pack("<I", rest | _DATA_UNCOMPRESSED)
    common = pack("<HHHHII", _LONG_FILE, 0o644, 0, 0, epoch, number)
    return common + pack("<QQQIIII", start, size, 0, 1, _NONE, 0, _NONE) + lengths


def _reference(offset: int) -> int:
    """The address of a metadata byte: the start of its stored block, then the offset inside the block."""
    block, inside = divmod(offset, _METADATA)
    return block * (_METADATA + 2) << 16 | inside


def _listing(names: list[str], offsets: list[int]) -> bytes:
    """The directory: a header for each run of entries whose inodes start in the same metadata block."""
    result, first = b"", 0
    while first < len(names):
        block = offsets[first] // _METADATA
        last = first
        while last < len(names) and offsets[last] // _METADATA == block:
            last += 1
        result += pack("<III", last - first - 1, block * (_METADATA + 2), first + 1)
        for index in range(first, last):
            raw = names[index].encode()
            result += pack("<HhHH", offsets[index] % _METADATA, index - first, _FILE, len(raw) - 1) + raw
        first = last
    return result


def _stored(data: bytes) -> bytes:
    """Metadata as stored: blocks of 8192 bytes, each preceded by its length."""
    pieces = (data[at : at + _METADATA] for at in range(0, len(data), _METADATA))
    return b"".join(pack("<H", len(piece) | _UNCOMPRESSED) + piece for piece in pieces)
