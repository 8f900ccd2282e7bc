# SPDX-License-Identifier: Apache-2.0
"""Which pclusters Linux can decompress in place: into the same pages that their compressed bytes were read into.

Everything else costs a copy of the compressed bytes, or separate pages to read them into. Source:
``fs/erofs/decompressor.c`` (z_erofs_lz4_handle_overlap), ``fs/erofs/zdata.c``; the margin is LZ4's own
LZ4_DECOMPRESS_INPLACE_MARGIN.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing
from erofs_edge.erofs.extents import Extent
from erofs_edge.erofs.superblock import SuperInfo

PAGE = 4096


@dataclass(slots=True)
class InPlace:
    """Decoded bytes of compressed extents: all of them, those that decompress in place, and the others by reason."""

    data_bytes: int = 0
    eligible_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """0 to 1; 1 if nothing is compressed."""
        return self.eligible_bytes / self.data_bytes if self.data_bytes else 1.0

    def count(self, extent: Extent, reason: str | None) -> None:
        """Count an extent with the verdict of `obstacle`."""
        self.data_bytes += extent.length
        if reason is None:
            self.eligible_bytes += extent.length
        else:
            self.reasons[reason] = self.reasons.get(reason, 0) + extent.length


def obstacle(backing: Backing, info: SuperInfo, extent: Extent) -> str | None:
    """Return why an encoded extent cannot be decompressed in place, with pages of 4 KiB; None if it can.

    "no 0padding"  the stream is not at the end of its pcluster
    "algorithm"    only LZ4 works in place
    "inline"       the bytes are on a page of metadata
    "partial"      the pcluster holds more than the extent
    "size"         the extent does not have as many pages as the pcluster
    "margin"       the output ends too close to the end of its page: (compressed >> 8) + 32 bytes must be in between

    Raises ErofsFormatError if the pcluster cannot be read.
    """
    if extent.algorithm != ondisk.ALGORITHM_LZ4:
        return "algorithm"
    if not info.incompat(ondisk.INCOMPAT_LZ4_0PADDING):
        return "no 0padding"
    if extent.inline or extent.size % info.block_size:
        return "inline"
    if extent.partial:
        return "partial"
    end = extent.start + extent.length
    if -(-end // PAGE) - extent.start // PAGE < -(-extent.size // PAGE):
        return "size"
    first = backing.read(extent.address, info.block_size, "pcluster")
    compressed = extent.size - (len(first) - len(first.lstrip(b"\0")))
    return None if -end % PAGE >= (compressed >> 8) + 32 else "margin"
