# SPDX-License-Identifier: Apache-2.0
"""The few forms of DER (ITU-T X.690) used in certificates and PKCS#7 signatures, and a strict reader."""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass

from erofs_edge.errors import FormatError

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID, UTF8 = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
CONTEXT = 0xA0  # constructed, explicit; for primitive, implicit elements it is 0x80
UTC_FIRST_YEAR, UTC_LAST_YEAR = 1950, 2049  # RFC 5280 section 4.1.2.5


def element(tag: int, *content: bytes) -> bytes:
    """Encode tag, definite length, content."""
    body = b"".join(content)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(raw))) + raw + body


def integer(value: int) -> bytes:
    """Encode a non-negative INTEGER."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER from '1.2.840.113549'."""
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for arc in (40 * first + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        body += bytes(reversed(septets))
    return element(OID, body)


def moment(epoch: int) -> bytes:
    """Encode seconds since 1970 as UTCTime or, outside 1950-2049, GeneralizedTime (RFC 5280 section 4.1.2.5)."""
    parts = time.gmtime(epoch)
    if UTC_FIRST_YEAR <= parts.tm_year <= UTC_LAST_YEAR:
        return element(UTC_TIME, time.strftime("%y%m%d%H%M%SZ", parts).encode())
    return element(GENERALIZED_TIME, f"{parts.tm_year:04}{time.strftime('%m%d%H%M%SZ', parts)}".encode())


def epoch_of(text: str) -> int:
    """Seconds since 1970 for text such as '99991231235959Z'."""
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


@dataclass(frozen=True, slots=True)
class Element:
    """An element that was read: `start` is its first byte, `body` the range of its content, both in the whole input."""

    tag: int
    start: int
    body: tuple[int, int]


class Reader:
    """Reads elements from a range of bytes, in order. Everything that DER forbids raises FormatError."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data, self.position, self.end = data, start, len(data) if end is None else end

    def take(self, *tags: int) -> Element:
        """The next element, which must have one of these tags."""
        start = self.position
        if start + 2 > self.end:
            raise _broken("the DER structure is cut short", start)
        tag, size = self.data[start], self.data[start + 1]
        if tag not in tags:
            raise _broken(f"DER tag {tag:#x}, {' or '.join(map(hex, tags))} is expected", start)
        at = start + 2
        if size >= 0x80:
            count = size & 0x7F
            raw = self.data[at : min(at + count, self.end)]
            size = int.from_bytes(raw, "big")
            if not 0 < count <= 4 or len(raw) != count or raw[0] == 0 or size < 0x80:
                raise _broken("a DER length that is not minimal", start + 1)
            at += count
        if at + size > self.end:
            raise _broken("a DER element leaves its parent", start)
        self.position = at + size
        return Element(tag, start, (at, at + size))

    def enter(self, *tags: int) -> Reader:
        """A reader of the next element's content."""
        return Reader(self.data, *self.take(*tags).body)

    def content(self, *tags: int) -> bytes:
        """The content of the next element."""
        start, end = self.take(*tags).body
        return self.data[start:end]

    def whole(self, *tags: int) -> bytes:
        """The next element with its tag and length."""
        found = self.take(*tags)
        return self.data[found.start : found.body[1]]

    def number(self) -> int:
        """The next element, which must be a non-negative INTEGER."""
        at, raw = self.position, self.content(INTEGER)
        if not raw or raw[0] & 0x80 or (len(raw) > 1 and raw[0] == 0 and not raw[1] & 0x80):
            raise _broken("an INTEGER that is negative or not minimal", at)
        return int.from_bytes(raw, "big")

    def expect(self, dotted: str, otherwise: str) -> None:
        """Raises FormatError, with `otherwise`, if the next element is not this OBJECT IDENTIFIER."""
        at = self.position
        if self.whole(OID) != oid(dotted):
            raise _broken(otherwise, at)

    def finish(self) -> None:
        """Raises FormatError if anything is left."""
        if self.position != self.end:
            raise _broken("bytes after the end of a DER structure", self.position)


def _broken(message: str, offset: int) -> FormatError:
    return FormatError(message, where=f"offset {offset:#x}")
