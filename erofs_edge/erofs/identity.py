# SPDX-License-Identifier: Apache-2.0
"""The UUID that an image gets from its content: two images share it only if they are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from erofs_edge.erofs.output import Sink

PIECE = 4 << 20  # bytes


def content_digest(sink: Sink, end: int, look: Callable[[int, bytes], None] | None = None, start: int = 0) -> bytes:
    """sha256 of an image file as it is from byte 0 to `end`, what is before `start` taken for zeros.

    `look` sees all pieces from there on, with their offsets.
    """
    state = hashlib.sha256(bytes(start))
    for at in range(start, end, PIECE):
        data = sink.read(at, min(PIECE, end - at))
        state.update(data)
        if look:
            look(at, data)
    return state.digest()


def uuid_from(content: bytes, first: bytes | bytearray) -> bytes:
    """A UUID of version 8 (RFC 9562: the maker's own scheme).

    `content` is the sha256 of an image with zeros for its `first` blocks, which have no superblock yet.
    """
    raw = bytearray(hashlib.sha256(content + first).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
