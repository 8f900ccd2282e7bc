# SPDX-License-Identifier: Apache-2.0
"""Place runs of data in the order of a profile: hot extents of all files, a gap for metadata, the rest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.output import Sink
from erofs_edge.erofs.spool import COLD, Spool


class Order:
    """The places of a spool's runs, from block `first` on. `behind_hot` is the block where the gap starts."""

    def __init__(self, spool: Spool, first: int, block_size: int) -> None:
        self._spool = spool
        self._block_size = block_size
        self._runs = [run for run in spool.runs if run.size]
        self._hot = sorted((run for run in self._runs if run.rank != COLD), key=lambda run: run.rank)
        self._cold = [run for run in self._runs if run.rank == COLD]
        self._gap = 0
        for run in self._hot:
            run.place = first
            first += run.blocks(block_size)
        self.behind_hot = first

    def leave(self, blocks: int) -> None:
        """Place the rest, that many blocks after the hot part."""
        self._gap = blocks
        at = self.behind_hot + blocks
        for run in self._cold:
            run.place = at
            at += run.blocks(self._block_size)

    def where(self, block: int) -> int:
        """Return the image's block for a block of the spool."""
        run = self._runs[bisect_right(self._runs, block, key=lambda run: run.start) - 1]
        return run.place + block - run.start

    def write(self, sink: Sink) -> None:
        """Append everything, with zeros for the gap."""
        for run in self._hot:
            sink.append([data for _, data in self._spool.pieces(run)])
        sink.append([bytes(self._gap * self._block_size)])
        for run in self._cold:
            for _, data in self._spool.pieces(run):
                sink.append([data])


def use_extents(spool: Spool, path: bytes, first_block: int, extents: Sequence[Extent]) -> None:
    """Record that the file at `path` uses the extents of another file, which are contiguous from `first_block` on or
    have places of their own."""
    at = 0
    for extent in extents:
        if extent.blocks:
            spool.use(extent.place if extent.place >= 0 else first_block, path, at, at + extent.length)
        at += extent.length


def joined(extents: Sequence[Extent]) -> tuple[int, list[Extent]] | None:
    """Return (the first block, extents without places of their own) if they are contiguous, else None."""
    block = first = extents[0].place
    for extent in extents:
        if extent.blocks and extent.place != block:
            return None
        block += extent.blocks
    return max(first, 1), [extent._replace(place=-1) for extent in extents]
