# SPDX-License-Identifier: Apache-2.0
"""The dm-verity superblock as veritysetup writes it, and where the levels of the tree are.

Sources: cryptsetup ``lib/verity/verity.c`` (struct verity_sb, little-endian, 512 bytes) and
``lib/verity/verity_hash.c``; Linux ``drivers/md/dm-verity-target.c`` for the tree. Only hash type 1: each digest is
H(salt + block), digests are stored in power-of-two slots, and the rest of each hash block is zeros.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from struct import Struct

from erofs_edge.errors import FormatError

MAGIC = b"verity\0\0"
SIZE = 512
SALT_MAX = 256
BLOCK_MIN, BLOCK_MAX = 512, 512 << 10
DIGEST_SIZES = {"sha256": 32, "sha512": 64}
# signature, version, hash_type, uuid, algorithm, data_block_size, hash_block_size, data_blocks, salt_size, salt
_FIELDS = Struct("<8sII16s32sIIQH6x256s168x")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree: hash blocks [start, start + count) of the hash device; level 0 hashes the data."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of a superblock. Sizes are in bytes; `data_blocks` counts data blocks."""

    uuid: bytes
    salt: bytes
    data_blocks: int
    algorithm: str = "sha256"
    data_block_size: int = 4096
    hash_block_size: int = 4096
    per_block: int = field(init=False)
    """number of digests in a hash block, a power of two"""

    def __post_init__(self) -> None:
        """Raises FormatError, without an offset, for values that no kernel accepts."""
        if self.algorithm not in DIGEST_SIZES:
            raise FormatError(f"unknown hash algorithm {self.algorithm!r}", hint=f"one of {', '.join(DIGEST_SIZES)}")
        for name, size in (("data", self.data_block_size), ("hash", self.hash_block_size)):
            if not is_block_size(size):
                raise FormatError(f"{name} block size {size} is not a power of two from {BLOCK_MIN} to {BLOCK_MAX}")
        if not 0 < self.data_blocks < 1 << 63:
            raise FormatError(f"{self.data_blocks} data blocks: nothing to hash, or too many")
        if len(self.salt) > SALT_MAX or len(self.uuid) != 16:
            raise FormatError(f"the salt has at most {SALT_MAX} bytes and the UUID 16")
        slot = 1 << (DIGEST_SIZES[self.algorithm] - 1).bit_length()
        object.__setattr__(self, "per_block", self.hash_block_size // slot)

    @property
    def digest_size(self) -> int:
        return DIGEST_SIZES[self.algorithm]

    @property
    def slot_size(self) -> int:
        """Bytes that one digest takes up in a hash block."""
        return self.hash_block_size // self.per_block

    @property
    def data_size(self) -> int:
        return self.data_blocks * self.data_block_size

    def start_block(self, hash_offset: int) -> int:
        """Return the first hash block of the tree itself if the superblock is at byte `hash_offset`."""
        return -(-(hash_offset + SIZE) // self.hash_block_size)

    def levels(self, hash_offset: int) -> list[Level]:
        """Return the levels from 0 (over the data) upwards; none for one data block. On disk, the topmost comes
        first."""
        return self.levels_from(self.start_block(hash_offset))

    def levels_from(self, start: int) -> list[Level]:
        """Like `levels`, for a tree whose first hash block is `start`: AVB's tree has no superblock before it."""
        counts = []
        count = self.data_blocks
        while count > 1:
            count = -(-count // self.per_block)
            counts.append(count)
        levels = []
        for count in reversed(counts):
            levels.append(Level(start, count))
            start += count
        return levels[::-1]

    def end(self, hash_offset: int) -> int:
        """Return the first byte after the tree."""
        levels = self.levels(hash_offset)
        blocks = levels[0].start + levels[0].count if levels else self.start_block(hash_offset)
        return blocks * self.hash_block_size

    def salted(self) -> hashlib._Hash:
        """Return a hash state that has consumed the salt; copy() it for each block."""
        return hashlib.new(self.algorithm, self.salt)

    def pack(self) -> bytes:
        """Encode as 512 bytes."""
        return _FIELDS.pack(
            MAGIC, 1, 1, self.uuid, self.algorithm.encode(), self.data_block_size, self.hash_block_size,
            self.data_blocks, len(self.salt), self.salt,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class VerityInfo:
    """A hash tree that has been written.

    hash_offset       byte of the superblock (in the image itself if the tree was appended)
    hash_start_block  first hash block of the tree itself, as in a dm-verity table
    block_size        size of a data block in bytes
    size              size in bytes of the file that holds the tree
    """

    root_hash: bytes
    salt: bytes
    uuid: bytes
    block_size: int
    data_blocks: int
    hash_offset: int
    hash_start_block: int
    size: int
    hash_block_size: int = 4096
    algorithm: str = "sha256"

    @property
    def superblock(self) -> Superblock:
        return Superblock(
            self.uuid, self.salt, self.data_blocks, self.algorithm, self.block_size, self.hash_block_size
        )  # fmt: skip


def parse(raw: bytes, offset: int) -> Superblock:
    """Parse the superblock in `raw`, which was read from byte `offset` (for messages). Raises FormatError.

    Padding must be zeros, as all known writers leave it: everything that the root hash does not cover is checked here.
    """

    def broken(message: str, at: int, hint: str | None = None) -> FormatError:
        return FormatError(message, where=f"offset {offset + at:#x}", hint=hint)

    if len(raw) < SIZE:
        raise broken("the verity superblock is cut off", len(raw))
    (magic, version, hash_type, uuid, algorithm, data_block_size, hash_block_size, data_blocks, salt_size, salt) = (
        _FIELDS.unpack_from(raw)
    )
    if magic != MAGIC:
        raise broken("no verity superblock here", 0, "name its place with --hash-offset")
    if version != 1:
        raise broken(f"verity superblock of version {version}, only 1 is known", 8)
    if hash_type != 1:
        raise broken(f"hash type {hash_type}, only 1 (normal) is supported", 12)
    if salt_size > SALT_MAX:
        raise broken(f"salt of {salt_size} bytes, at most {SALT_MAX} fit", 80)
    if any(raw[82:88]) or any(salt[salt_size:]) or any(raw[344:SIZE]):
        raise broken("padding of the verity superblock is not zero", 82)
    name, _, rest = algorithm.partition(b"\0")
    if any(rest):
        raise broken("the algorithm's name is followed by garbage", 32)
    try:
        return Superblock(
            uuid, salt[:salt_size], data_blocks, name.decode("ascii", "backslashreplace"), data_block_size,
            hash_block_size,
        )  # fmt: skip
    except FormatError as error:
        raise broken(error.message, 32, error.hint) from None


def is_block_size(size: int) -> bool:
    """Whether this is a power of two that dm-verity accepts as a block size."""
    return BLOCK_MIN <= size <= BLOCK_MAX and size & (size - 1) == 0
