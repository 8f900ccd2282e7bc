# SPDX-License-Identifier: Apache-2.0
"""Where the packed inode of an older image is cut, so that what has not changed can be cut there again.

A pcluster ends where its output is full, so after a change everything behind it would be cut in another way. Extents
of the older image whose content is still there are points at which cutting falls into step again (compress.py).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class OldExtent(NamedTuple):
    """Bytes [start, start + length) of the packed inode, and their sha256; `raw` ones are stored as they are, an
    `inline` one stands behind the index."""

    start: int
    length: int
    raw: bool
    inline: bool
    digest: bytes

    @property
    def end(self) -> int:
        return self.start + self.length


class Anchors:
    """The extents that are unchanged, by byte of a piece of `size` bytes: start → (end, whether it is raw).

    An `end` of None: what follows was inline, and is not any more, so the end is one that the compressor chose.
    `inline` is where one that stands behind the index starts that is unchanged, -1 if there is none.
    """

    def __init__(self, extents: Iterable[tuple[int, int | None, bool]], size: int, inline: int = -1) -> None:
        self.inline = inline
        self._extents = {start: (end, raw) for start, end, raw in extents}
        # another extent that ended where the inline one starts would be taken for the whole blocks of a split end
        ends = {end for end, _ in self._extents.values() if end is not None and end != inline}
        self._points = sorted(ends | self._extents.keys())
        self._size = size

    def __bool__(self) -> bool:
        return bool(self._extents)

    def known_end(self, at: int) -> int | None:
        """The end of the old extent that starts there; None where none does, or its end says nothing."""
        return self._extents.get(at, (None, False))[0]

    def is_raw(self, at: int) -> bool:
        end, raw = self._extents.get(at, (None, False))
        return raw and end is not None

    def target(self, at: int, least: int) -> int:
        """Where an extent from byte `at` on should end at the latest: at the end of the old one that starts there,
        else at the first known point that is at least `least` bytes away, else at the end of the piece."""
        end, _ = self._extents.get(at, (None, False))
        if at in self._extents:
            return self._size if end is None else end
        number = bisect_left(self._points, at + least)
        return self._points[number] if number < len(self._points) else self._size

    @property
    def identity(self) -> str:
        """Tells cached data apart."""
        if not self:
            return ""
        text = " ".join(f"{start}-{end}{'r' * raw}" for start, (end, raw) in sorted(self._extents.items()))
        return f" at {hashlib.sha256(f'{text} inline {self.inline}'.encode()).hexdigest()}"


def unchanged(old: Sequence[OldExtent], data: bytes, offset: int) -> Anchors:
    """The anchors in a piece: what it holds from byte `offset` of the packed inode on is compared by sha256."""
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
