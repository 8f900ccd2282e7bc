# SPDX-License-Identifier: Apache-2.0
"""The minimum version in the `misc` partition: older versions no longer start.

Two records, each a U-Boot environment block of its own (see slots.py) with one variable, MIN_VERSION, in decimal. A
record with a wrong checksum is ignored; of the valid ones the higher counts, so neither a power cut between the two
writes nor a worn block takes a board back. Without a valid record there is no minimum.
"""

from __future__ import annotations

from erofs_edge.disk import slots
from erofs_edge.errors import FormatError

OFFSETS = (128 << 10, 192 << 10)
"""bytes, of the two records in the partition"""
SIZE = 4 << 10
NAME = "MIN_VERSION"
VERSION_MAX = 999_999_999
"""the largest version that U-Boot's `test`, a shell and a 32-bit integer all handle"""


def encode(minimum: int) -> bytes:
    """One record. Raises FormatError for a version that cannot be recorded."""
    if not 0 <= minimum <= VERSION_MAX:
        raise FormatError(f"version {minimum} is not between 0 and {VERSION_MAX}")
    return slots.encode({NAME: str(minimum)}, SIZE)


def with_minimum(state: bytes, minimum: int) -> bytes:
    """A slot state (see `slots.encode_state`) followed by both records: the start of the partition."""
    image = bytearray(state.ljust(OFFSETS[-1] + SIZE, b"\0"))
    for offset in OFFSETS:
        image[offset : offset + SIZE] = encode(minimum)
    return bytes(image)


def decode(raw: bytes) -> int | None:
    """The minimum in the start of a partition; None if neither record is intact."""
    found = []
    for offset in OFFSETS:
        try:
            value = slots.decode(raw[offset : offset + SIZE], offset).get(NAME, "")
        except FormatError:
            continue
        if value.isascii() and value.isdecimal() and int(value) <= VERSION_MAX:
            found.append(int(value))
    return max(found, default=None)
