# SPDX-License-Identifier: Apache-2.0
"""The provisioning system of a board as the last start in QEMU had it, unless anything that it is made of has changed.

Making it takes a tenth of a flash that has nothing to write. One is kept for each kernel, 64 MB, as the emulator loads
it: not compressed, and without credentials, which are secret.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import msgspec

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.manifest.model import Board, Lock
from erofs_edge.provision.initramfs import FOLDER, Provisioning, build_provisioning
from erofs_edge.sources.cache import Cache

KIND = "provisioning-1"
RECIPE = 1
"""version of what makes it, outside this package: raised when that gives other bytes"""


class _Kept(msgspec.Struct, array_like=True):
    """`inputs`: the digest of what the others were made from."""

    inputs: str
    version: str
    kernel: bytes
    initramfs: bytes
    device_tree: bytes | None
    epoch: int


def kept_provisioning(board: Board, board_lock: Lock, cache: Cache) -> Provisioning:
    """What `build_provisioning` makes without credentials, uncompressed. Raises as that does."""
    inputs = input_digest(board, board_lock)
    key = hashlib.sha256(msgspec.msgpack.encode(board_lock.packages["kernel"])).hexdigest()
    kept = cache.load_record(KIND, key, _Kept)
    if kept is None or kept.inputs != inputs:
        made = build_provisioning(board, board_lock, cache, packed=False)
        kept = _Kept(inputs, made.version, made.kernel, made.initramfs, made.device_tree, made.epoch)
        with suppress(ErofsEdgeError):  # a full disk, or a cache that may only be read, is no reason not to flash
            cache.store_record(KIND, key, kept)
    return Provisioning(kept.version, kept.kernel, kept.initramfs, kept.device_tree, kept.epoch)


def input_digest(board: Board, board_lock: Lock) -> str:
    """SHA-256, in hex, of everything that the bytes depend on."""
    digest = hashlib.sha256(
        msgspec.msgpack.encode([RECIPE, board.boot, board_lock.packages["kernel"], board_lock.date])
    )
    for path in sorted(path for path in FOLDER.iterdir() if path.is_file()):  # scripts, lists, and the lock
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
