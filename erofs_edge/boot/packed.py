# SPDX-License-Identifier: Apache-2.0
"""A cache of compressed initramfs blocks: programs and modules are the same in build after build."""

from __future__ import annotations

import hashlib

import msgspec

from erofs_edge.boot.initramfs import Pack, pack_block
from erofs_edge.sources.cache import Cache

KIND = "initramfs-block-1"


class Block(msgspec.Struct, array_like=True):
    """A compressed block."""

    packed: bytes


def cached_pack(cache: Cache) -> Pack:
    """`pack_block` with a cache keyed by the block's hash and the codec's version."""
    import lz4

    version = lz4.library_version_string().encode()

    def pack(block: bytes) -> bytes:
        key = hashlib.sha256(version + b"\0" + block).hexdigest()
        known = cache.load_record(KIND, key, Block)
        if known is None:
            known = Block(pack_block(block))
            cache.store_record(KIND, key, known)
        return known.packed

    return pack
