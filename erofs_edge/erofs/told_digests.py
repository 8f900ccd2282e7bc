# SPDX-License-Identifier: Apache-2.0
"""Verify the digests stated in an image: of its devices (tags, device_table.py) and of its files.

Kernels let files with equal fingerprints share pages, so a wrong one shows the content of another file
(fingerprints.py; fsck.erofs --xattr-inode-digest).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import NamedTuple

from erofs_edge.erofs.backing import DEVICE_BITS
from erofs_edge.erofs.device_table import is_hash
from erofs_edge.erofs.fingerprints import PREFIX
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import PIECE, Image
from erofs_edge.errors import ErofsFormatError

HASHED_MAX = 1 << 36  # maximum bytes of a device to hash: 64 GiB take minutes
_ZEROS = bytes(PIECE)


class Wrong(NamedTuple):
    """A digest that does not match the content, or (`unread`) was not verified; for a file, with inode byte and
    path."""

    message: str
    offset: int | None = None
    path: bytes | None = None
    unread: bool = False


def wrong_devices(image: Image) -> Iterator[Wrong]:
    """Yield devices whose tag is a sha256, but not that of their blocks."""
    info = image.superblock
    for number, slot in enumerate(info.devices, 1):
        size = slot.blocks << info.raw.blkszbits
        if info.is_rafs or not is_hash(slot.tag) or number in image.missing_devices:
            continue
        if size > HASHED_MAX:
            message = f"device {number} has {size} bytes: whether its sha256 is its tag is not looked at"
            yield Wrong(message, unread=True)
            continue
        state = hashlib.sha256()
        for at in range(0, size, PIECE):
            state.update(image.backing.read((number << DEVICE_BITS) + at, min(PIECE, size - at), "device"))
        if state.hexdigest() != slot.tag.decode():
            yield Wrong(f"device {number} is the wrong one: the sha256 of its content is not its tag")


def wrong_fingerprints(
    image: Image, files: Iterable[tuple[DiskInode, bytes]], pool: Executor, limit: int
) -> Iterator[Wrong]:
    """Yield those of (inode, path) whose fingerprint does not match. Files are hashed in `pool` until their sizes
    add up to `limit` bytes; the rest is reported as unread. Unreadable files are skipped, since other checks report
    them."""
    waiting = []
    for inode, path in files:
        try:
            told = image.fingerprint(inode) if stat.S_ISREG(inode.mode) else None
        except ErofsFormatError as error:
            yield Wrong(error.message, inode.offset, path)
            continue
        if told is None:
            continue
        if not told.startswith(PREFIX) or len(told) != len(PREFIX) + 32:
            yield Wrong(f"the fingerprint {told[:64]!r} is of no known form", inode.offset, path)
        elif inode.size > limit:
            yield Wrong("the fingerprint is not looked at: all files together are too large", inode.offset, path, True)
        else:
            limit -= inode.size
            waiting.append((pool.submit(_sha256, image, inode), told[len(PREFIX) :], inode, path))
    for future, told, inode, path in waiting:
        found = future.result()
        if found not in (told, None):
            yield Wrong("the fingerprint is not that of the content", inode.offset, path)


def _sha256(image: Image, inode: DiskInode) -> bytes | None:
    state = hashlib.sha256()
    try:
        hash_file(image, inode, state)
    except ErofsFormatError:
        return None
    return state.digest()


def hash_file(image: Image, inode: DiskInode, *states: hashlib._Hash) -> None:
    """Feed the content of a file to each hash state, with holes as zeros. Raises ErofsFormatError."""

    def give(data: bytes) -> None:
        for state in states:
            state.update(data)

    def give_zeros(length: int) -> None:
        for at in range(0, length, PIECE):
            give(_ZEROS[: length - at])

    position = 0
    for offset, data in image.stream(inode):
        give_zeros(offset - position)
        give(data)
        position = offset + len(data)
    give_zeros(inode.size - position)
