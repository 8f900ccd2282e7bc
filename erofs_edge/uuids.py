# SPDX-License-Identifier: Apache-2.0
"""UUIDs derived from content: the same bytes give the same UUID on every machine."""

from __future__ import annotations


def uuid8(digest: bytes) -> bytes:
    """Turn the first 16 bytes of a digest into a UUID of version 8 (RFC 9562: vendor-specific)."""
    raw = bytearray(digest[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
