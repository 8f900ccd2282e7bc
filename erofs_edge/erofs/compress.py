# SPDX-License-Identifier: Apache-2.0
"""How content is cut into pclusters: the rules that decide the bytes of a compressed file.

They are mkfs.erofs's (erofs-utils 1.9, several workers): segments of 16 MiB, pclusters filled to their fixed output
size, runs without gain stored raw block by block, and a whole file stored flat when compression gains nothing.
Changing any of them changes images: raise RULES then, since cached data is filed under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from erofs_edge.codec.lz4 import FixedOutput, address_of
from erofs_edge.codec.registry import Codec, open_compressor
from erofs_edge.erofs.index import Extent, full_index_size

RULES = 1
EXTENT_LENGTH_MAX = 8_192_000  # mkfs.erofs's window; below 8 MiB no distance in an index saturates
EXTENT_LCLUSTERS_MAX = 2000  # the same in lclusters, for small blocks
CAP_SLACK = 64  # a call that stops this close to the end of its input may have been cut short by it

# first bytes of formats that are compressed already; only a hint, `is_incompressible` looks closer
COMPRESSED_MAGIC = (
    b"\xfd7zXZ\0",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x89PNG\r\n",
    b"PK\x03\x04",
    b"BZh",
    b"7z\xbc\xaf\x27\x1c",
    b"LZIP",
    b"\xff\xd8\xff",
    b"OggS",
    b"wOF2",
)
PROBE_MAX = 65536
PROBE_KEPT = 0.99  # of the probe's bytes: a smaller result means that there is something to gain


@dataclass(frozen=True, slots=True)
class CutRules:
    """What cutting depends on besides the content; sizes in bytes."""

    codec: Codec
    level: int | None
    block_size: int
    pcluster: int

    @property
    def extent_max(self) -> int:
        return min(EXTENT_LENGTH_MAX, EXTENT_LCLUSTERS_MAX * self.block_size)

    @property
    def identity(self) -> str:
        """Names everything that the bytes depend on besides content."""
        return f"{RULES} {self.codec.name} {self.codec.version} {self.level} {self.block_size} {self.pcluster}"


class Segment(NamedTuple):
    """A compressed piece of a file: its extents, and for each a chunk, whole blocks unless it is raw."""

    extents: list[Extent]
    chunks: list[bytes | memoryview]

    @property
    def blocks(self) -> int:
        return sum(extent.blocks for extent in self.extents)


class Cutter:
    """Cuts segments with one thread's compressors."""

    def __init__(self, rules: CutRules) -> None:
        self.rules = rules
        self._compressor = open_compressor(rules.codec, rules.level, rules.pcluster, rules.block_size)
        self._probe = FixedOutput(None, PROBE_MAX)

    def cut(self, data: bytes) -> Segment:
        """The extents of one segment (at most 16 MiB)."""
        block_size, pcluster = self.rules.block_size, self.rules.pcluster
        view = memoryview(data)
        base, size = address_of(data), len(data)
        segment = Segment([], [])
        at = consumed = 0
        while at < size:
            left = size - at
            if left <= block_size:
                _store_raw(segment, view[at:], block_size)
                break
            consumed, produced = self._fill(base + at, left, consumed)
            blocks = -(-produced // block_size)
            if blocks * block_size < consumed:
                segment.extents.append(Extent(consumed, blocks, False))
                segment.chunks.append(self._compressor.padded(produced, blocks * block_size))
                at += consumed
            else:
                run = max(1, min(consumed, pcluster) // block_size) * block_size
                _store_raw(segment, view[at : at + run], block_size)
                at += run
        return segment

    def _fill(self, address: int, left: int, last: int) -> tuple[int, int]:
        """One pcluster: (bytes consumed, bytes produced). `last` is what the call before consumed.

        LZ4HC looks at its output limit only when it has found a match, so with few matches every call scans far
        ahead, in vain. An input not much longer than what the call will consume saves that; when it was too short
        the call is repeated with more.
        """
        limit = min(left, self.rules.extent_max)
        if self.rules.level is None:
            return self._compressor.fill(address, limit)
        cap = min(limit, max(4 * self.rules.pcluster, 2 * last))
        done = self._compressor.fill(address, cap)
        while cap < limit and done[0] > cap - CAP_SLACK:
            cap = min(limit, 4 * cap)
            done = self._compressor.fill(address, cap)
        return done

    def is_incompressible(self, start: bytes, middle: bytes) -> bool:
        """Whether a file that starts so, with this probe from its middle, is not worth compressing."""
        if not start.startswith(COMPRESSED_MAGIC):
            return False
        probe = FixedOutput(None, int(len(middle) * PROBE_KEPT)) if len(middle) < PROBE_MAX else self._probe
        consumed, produced = probe.fill(address_of(middle), len(middle))
        return consumed < len(middle) or produced >= PROBE_KEPT * len(middle)

    def probe_range(self, size: int) -> tuple[int, int]:
        """(offset, length) of the probe in the middle of a file."""
        length = min(size, self.rules.pcluster, PROBE_MAX)
        return (size - length) // 2, length


def gains(size: int, blocks: int, block_size: int) -> bool:
    """Whether `blocks` blocks and an index are less than a file's own `size` bytes."""
    return blocks * block_size + full_index_size(size, block_size.bit_length() - 1) < size


def _store_raw(segment: Segment, data: memoryview, block_size: int) -> None:
    segment.extents.append(Extent(len(data), -(-len(data) // block_size), True))
    segment.chunks.append(data)
