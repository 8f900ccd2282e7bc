# SPDX-License-Identifier: Apache-2.0
"""Evaluate a trace: how much was read, in how many runs, of what, and where the long gaps without new reads were."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from erofs_edge.erofs.read import Image
from erofs_edge.erofs.regions import KINDS, map_image
from erofs_edge.trace.record import Trace

GAPS = 5
"""number of the longest gaps in a report"""


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing new was read for `seconds` before block `block`, the `rank`th first read (from 0)."""

    seconds: float
    rank: int
    block: int


@dataclass(frozen=True, slots=True)
class Report:
    """The evaluation of a trace. Sizes in bytes.

    runs          first reads that did not continue where the previous one had ended
    runs_sorted   runs of the same blocks if they were read in the order of the image
    order_broken  backward steps divided by all steps from run to run; 0 for an image laid out in reading order
    kinds         kind of region → bytes touched; {} without the image
    """

    root_hash: str
    image_bytes: int
    touched_bytes: int
    bytes_read: int
    requests: int
    seconds: float
    runs: int
    runs_sorted: int
    order_broken: float
    files: int
    gaps: list[Gap]
    kinds: dict[str, int]

    @property
    def share(self) -> float:
        """Share of the image that was touched, 0 to 1."""
        return self.touched_bytes / self.image_bytes if self.image_bytes else 0.0

    @property
    def amplification(self) -> float:
        """Bytes sent per byte touched; 1 if nothing was sent twice."""
        return self.bytes_read / self.touched_bytes if self.touched_bytes else 1.0


def report(trace: Trace, image: Image | None = None) -> Report:
    """Evaluate a trace. `image` must be the one that it belongs to: check that first. Raises ErofsFormatError."""
    touched = [block for read in trace.reads for block in range(read.first, read.first + read.blocks)]
    starts = [b.first for a, b in pairwise(trace.reads) if a.first + a.blocks != b.first]
    runs = len(starts) + bool(trace.reads)
    ordered = sorted(set(touched))
    back = sum(b.first < a.first for a, b in pairwise(trace.reads))
    longest = sorted(range(1, len(trace.reads)), key=lambda rank: (-trace.reads[rank].gap, rank))[:GAPS]
    return Report(
        root_hash=trace.root_hash,
        image_bytes=trace.image_bytes,
        touched_bytes=_bytes(trace, len(ordered), ordered[-1] if ordered else 0),
        bytes_read=trace.bytes_read,
        requests=trace.requests,
        seconds=trace.seconds,
        runs=runs,
        runs_sorted=sum(b != a + 1 for a, b in pairwise(ordered)) + bool(ordered),
        order_broken=back / (len(trace.reads) - 1) if len(trace.reads) > 1 else 0.0,
        files=len({use.path for use in trace.files}),
        gaps=[Gap(trace.reads[rank].gap / 1e6, rank, trace.reads[rank].first) for rank in longest],
        kinds=_kinds(image, ordered, trace.block_size) if image is not None else {},
    )


def _bytes(trace: Trace, blocks: int, last: int) -> int:
    """Of the blocks touched; the image's last one may be shorter."""
    missing = max((last + 1) * trace.block_size - trace.image_bytes, 0) if blocks else 0
    return blocks * trace.block_size - missing


def _kinds(image: Image, blocks: list[int], size: int) -> dict[str, int]:
    regions = map_image(image).regions
    starts = [region.start for region in regions]
    sums = dict.fromkeys(KINDS, 0)
    for block in blocks:
        position, end = block * size, (block + 1) * size
        for region in regions[max(bisect_right(starts, position) - 1, 0) :]:
            if region.start >= end:
                break
            sums[region.kind] += max(min(region.end, end) - max(region.start, position), 0)
    return {kind: total for kind, total in sums.items() if total}
