# SPDX-License-Identifier: Apache-2.0
"""Which blocks of an image are in use, and where there is room for more: best fit into holes, then the end."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator


class Space:
    """A byte for each block that was ever used. Blocks after the last used one are free without limit."""

    def __init__(self) -> None:
        self._used = bytearray()
        self._holes: list[tuple[int, int]] | None = None  # (blocks, first), sorted; set by the first `fill`

    @property
    def end(self) -> int:
        """The block after the last used one."""
        return self._used.rfind(1) + 1

    @property
    def free(self) -> int:
        """Number of unused blocks before `end`."""
        return self._used.count(0, 0, self.end)

    def is_free(self, first: int, blocks: int) -> bool:
        return first >= 0 and self._used.find(1, first, first + blocks) < 0

    def take(self, first: int, blocks: int) -> bool:
        """Mark these blocks as used. Return False, changing nothing, if one of them is used already."""
        if not self.is_free(first, blocks):
            return False
        if len(self._used) < first + blocks:
            self._used += bytes(first + blocks - len(self._used))
        self._used[first : first + blocks] = b"\1" * blocks
        self._holes = None
        return True

    def release(self, first: int, blocks: int) -> None:
        """Mark these blocks as free."""
        self._used[first : first + blocks] = bytes(blocks)
        self._holes = None

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield (first, blocks) of every run of free blocks before `end`, in order."""
        at, end = 0, self.end
        while (first := self._used.find(0, at, end)) >= 0:
            at = self._used.find(1, first, end)
            yield first, at - first

    def fill(self, blocks: int) -> int | None:
        """Use the first blocks of the smallest sufficient hole, the first of equals. Return the first block, or
        None."""
        if self._holes is None:
            self._holes = sorted((count, first) for first, count in self.holes())
        at = bisect_left(self._holes, (blocks, 0))
        if at == len(self._holes):
            return None
        count, first = self._holes.pop(at)
        if count > blocks:
            insort(self._holes, (count - blocks, first + blocks))
        self._used[first : first + blocks] = b"\1" * blocks
        return first

    def append(self, blocks: int) -> int:
        """Use blocks after the last used one."""
        first, holes = self.end, self._holes
        self.take(first, blocks)
        self._holes = holes
        return first

    def allocate(self, blocks: int) -> int:
        """`fill`, or `append` if no hole is large enough."""
        first = self.fill(blocks)
        return self.append(blocks) if first is None else first
