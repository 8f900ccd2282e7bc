# SPDX-License-Identifier: Apache-2.0
"""The state of a walk over a disk that is being verified."""

from __future__ import annotations

from dataclasses import dataclass, field

from erofs_edge.errors import FormatError
from erofs_edge.trust.key import VerificationKey
from erofs_edge.verify.checks import Verdict
from erofs_edge.verity.blocks import Source, read_exactly
from erofs_edge.verity.superblock import Superblock

FIT_MAX = 1 << 30
"""largest FIT that is read, in bytes"""


@dataclass(frozen=True, slots=True)
class Part:
    """A partition, or what stands for one: bytes [start, start + size) of the disk."""

    name: str
    start: int
    size: int

    @property
    def slot(self) -> str:
        """'a' of 'boot_a', '' of 'misc'."""
        base, mark, slot = self.name.rpartition("_")
        return slot if mark and base and len(slot) == 1 else ""


@dataclass(slots=True)
class Walk:
    """The state of one walk over a disk.

    covered   names of partitions that a signature covers
    proved    root hashes whose file system was already checked, since equal root hashes mean equal bytes
    minimum   the lowest version that starts
    firmware  digests of firmware partitions, each with the signed FIT that contains it
    fits      by the SHA-256 of valid FITs: what they boot with, and their firmware digest
    equal     partitions that hold, byte for byte, an image that was already checked, with the tree, its first block and
              root hash in `tree`"""

    fd: Source
    key: VerificationKey
    verdict: Verdict
    jobs: int | None = None
    covered: set[str] = field(default_factory=set)
    proved: set[bytes] = field(default_factory=set)
    data: set[str] = field(default_factory=set)
    minimum: int | None = None
    firmware: dict[str, str] = field(default_factory=dict)
    fits: dict[str, tuple[dict[str, str], str]] = field(default_factory=dict)
    tree: tuple[Superblock, int, bytes] | None = None
    equal: set[str] = field(default_factory=set)

    def read(self, part: Part, offset: int, length: int) -> bytes:
        """Bytes of a partition; fewer at its end."""
        return read_exactly(self.fd, max(min(length, part.size - offset), 0), part.start + offset)


def verity_of(values: dict[str, str]) -> tuple[Superblock, int, bytes]:
    """(tree, its first block, root hash) that an initramfs opens. Raises FormatError."""
    try:
        salt = "" if values["SALT"] == "-" else values["SALT"]
        size = int(values["BLOCK_SIZE"])
        sb = Superblock(bytes(16), bytes.fromhex(salt), int(values["DATA_BLOCKS"]), "sha256", size, size)
        first, root_hash = int(values["HASH_START"]), bytes.fromhex(values["ROOT_HASH"])
    except (KeyError, ValueError) as error:
        raise FormatError(f"the values in the initramfs are inconsistent: {error}") from error
    if len(root_hash) != sb.digest_size or first < sb.data_blocks:
        raise FormatError("the values in the initramfs are inconsistent")
    return sb, first, root_hash
