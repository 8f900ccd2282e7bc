# SPDX-License-Identifier: Apache-2.0
"""The UUID of an image, derived from its content: two images share it only if they are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from erofs_edge.erofs.output import Sink
from erofs_edge.uuids import uuid8

PIECE = 4 << 20  # bytes


def content_digest(sink: Sink, end: int, look: Callable[[int, bytes], None] | None = None, start: int = 0) -> bytes:
    """Return the sha256 of an image file from byte 0 to `end`, with everything before `start` taken as zeros.

    `look` receives all pieces from there on, with their offsets.
    """
    state = hashlib.sha256(bytes(start))
    for at in range(start, end, PIECE):
        data = sink.read(at, min(PIECE, end - at))
        state.update(data)
        if look:
            look(at, data)
    return state.digest()


def uuid_from(content: bytes, first: bytes | bytearray) -> bytes:
    """Return the UUID of an image.

    `content` is the sha256 of an image with zeros in place of its `first` blocks, which have no superblock yet.
    """
    return uuid8(hashlib.sha256(content + first).digest())
