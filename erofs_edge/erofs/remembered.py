# SPDX-License-Identifier: Apache-2.0
"""The most recently used extents of compressed files. With these, small reads and fragments of the packed inode need no
search in an index, which takes longer than most of the reads themselves."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator

from erofs_edge.erofs.extents import Extent

EXTENTS = 32768  # number kept, about 250 bytes each


class RememberedExtents:
    """Extents by inode number and offset, at most `limit` of them. Safe for several threads."""

    def __init__(self, limit: int = EXTENTS) -> None:
        self._limit = limit
        self._held = 0
        self._known: OrderedDict[int, tuple[list[int], list[Extent]]] = OrderedDict()  # nid → starts, extents, in order
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of extents kept."""
        return self._held

    def between(self, nid: int, offset: int, end: int, search: Callable[[int], Iterator[Extent]]) -> Iterator[Extent]:
        """Yield the extents of bytes [offset, end) of a file. `search(offset)` yields those from `offset` to the end of
        the file, and is called if one is not known."""
        while (known := self._find(nid, offset)) is not None:
            yield known
            offset = known.start + known.length
            if offset >= end:
                return
        for extent in search(offset):
            if extent.start >= end:
                return
            self._keep(nid, extent)
            yield extent

    def _find(self, nid: int, offset: int) -> Extent | None:
        with self._lock:
            known = self._known.get(nid)
            if known is None:
                return None
            self._known.move_to_end(nid)
            starts, extents = known
            at = bisect_right(starts, offset) - 1
            found = extents[at] if at >= 0 else None
        return found if found is not None and offset < found.start + found.length else None

    def _keep(self, nid: int, extent: Extent) -> None:
        with self._lock:
            starts, extents = self._known.setdefault(nid, ([], []))
            at = bisect_right(starts, extent.start)
            if at and starts[at - 1] == extent.start:
                return
            starts.insert(at, extent.start)
            extents.insert(at, extent)
            self._held += 1
            while self._held > self._limit:  # drop whole files, the least recently used first
                _, (gone, _) = self._known.popitem(last=False)
                self._held -= len(gone)
