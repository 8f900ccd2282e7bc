# SPDX-License-Identifier: Apache-2.0
"""Where the packed inode of an older image is cut, so that unchanged content can be cut there again.

A pcluster ends where its output is full, so after a change everything that follows would be cut differently. Extents of
the older image whose content is still there are points at which cutting gets back in step (compress.py).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class OldExtent(NamedTuple):
    """Bytes [start, start + length) of the packed inode, and their sha256. `raw` extents are stored uncompressed; an
    `inline` one is stored after the index."""

    start: int
    length: int
    raw: bool
    inline: bool
    digest: bytes

    @property
    def end(self) -> int:
        return self.start + self.length


class Anchors:
    """The unchanged extents, relative to a piece of `size` bytes: start → (end, whether it is raw).

    An `end` of None means that the next extent was inline and no longer is, so the compressor chose this end. `inline`
    is the start of an unchanged extent stored after the index, -1 if there is none.
    """

    def __init__(self, extents: Iterable[tuple[int, int | None, bool]], size: int, inline: int = -1) -> None:
        self.inline = inline
        self._extents = {start: (end, raw) for start, end, raw in extents}
        # an extent that ends where the inline one starts would be mistaken for the whole blocks of a split tail
        ends = {end for end, _ in self._extents.values() if end is not None and end != inline}
        self._points = sorted(ends | self._extents.keys())
        self._size = size

    def __bool__(self) -> bool:
        return bool(self._extents)

    def known_end(self, at: int) -> int | None:
        """Return the end of the old extent that starts at `at`; None if there is none or its end is not known."""
        return self._extents.get(at, (None, False))[0]

    def is_raw(self, at: int) -> bool:
        end, raw = self._extents.get(at, (None, False))
        return raw and end is not None

    def target(self, at: int, least: int) -> int:
        """Return where an extent from byte `at` on should end at the latest: at the end of the old one that starts
        there, else at the first known point at least `least` bytes away, else at the end of the piece."""
        end, _ = self._extents.get(at, (None, False))
        if at in self._extents:
            return self._size if end is None else end
        number = bisect_left(self._points, at + least)
        return self._points[number] if number < len(self._points) else self._size

    @property
    def identity(self) -> str:
        """Distinguishes cached data."""
        if not self:
            return ""
        text = " ".join(f"{start}-{end}{'r' * raw}" for start, (end, raw) in sorted(self._extents.items()))
        return f" at {hashlib.sha256(f'{text} inline {self.inline}'.encode()).hexdigest()}"


def unchanged(old: Sequence[OldExtent], data: bytes, offset: int) -> Anchors:
    """Return the anchors in a piece, whose content from byte `offset` of the packed inode on is compared by sha256."""
    view = memoryview(data)
    found: list[tuple[int, int | None, bool]] = []
    inline, follows = -1, None
    for one in reversed(old):
        start, end = one.start - offset, one.end - offset
        if start >= 0 and end <= len(data) and hashlib.sha256(view[start:end]).digest() == one.digest:
            if not one.inline:
                found.append((start, None if follows is not None and follows.inline and inline < 0 else end, one.raw))
            elif end == len(data):
                inline = start
        follows = one
    return Anchors(found, len(data), inline if found else -1)
