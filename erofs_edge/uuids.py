# SPDX-License-Identifier: Apache-2.0
"""UUIDs that follow from content: the same bytes, the same number, on every machine."""

from __future__ import annotations


def uuid8(digest: bytes) -> bytes:
    """The first 16 bytes of a digest as a UUID of version 8 (RFC 9562: the maker's own scheme)."""
    raw = bytearray(digest[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
