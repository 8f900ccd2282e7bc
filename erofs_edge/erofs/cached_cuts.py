# SPDX-License-Identifier: Apache-2.0
"""Segments from the compression cache if it has them, otherwise from the codec.

Keyed by the sha256 of the content and everything else that a cut depends on.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from erofs_edge.erofs.compress import Cutter
from erofs_edge.erofs.contents import ZEROS, sha256
from erofs_edge.erofs.cut_rules import Tails
from erofs_edge.erofs.index import Extent
from erofs_edge.erofs.segments import Segment

if TYPE_CHECKING:  # imported late, since few builds need it
    from erofs_edge.erofs.anchors import Anchors
    from erofs_edge.erofs.cache import CompressionCache


def cut_cached(
    data: bytes, cutter: Cutter, cache: CompressionCache | None, tails: Tails, old: Anchors | None = None
) -> Segment:
    """Like Cutter.cut, or Cutter.recut with `old`, but using the cache."""
    cut = partial(cutter.recut, old=old) if old else cutter.cut
    if data is ZEROS:
        return _cut_zeros(cutter, tails)
    if cache is None:
        return cut(data, tails)
    from erofs_edge.erofs.cache import cache_key

    key = cache_key(sha256(data), cutter.identity + tails.value + (old.identity if old else ""))
    payload = cache.get(key)
    segment = _unpack(payload, data, cutter.rules.block_size) if payload is not None else None
    if segment is None:
        segment = cut(data, tails)
        cache.put(key, _pack(segment))
    return segment


def _cut_zeros(cutter: Cutter, tails: Tails) -> Segment:
    """Return the segment for a piece that lies in a hole. Made only once, since a file may have thousands."""
    segment = cutter.zeros.get(tails)
    if segment is None:
        extents, chunks = cutter.cut(ZEROS, tails)
        # a cutter's output may be overwritten later, see Cutter.restart
        segment = cutter.zeros[tails] = Segment(extents, [bytes(chunk) for chunk in chunks])
    return segment


def cut_before_cached(data: bytes, phase: int, cutter: Cutter, cache: CompressionCache | None) -> Segment | None:
    """Like Cutter.cut_before, but using the cache."""
    if cache is None:
        return cutter.cut_before(data, phase)
    from erofs_edge.erofs.cache import cache_key

    key = cache_key(sha256(data), f"{cutter.identity} before {phase}")
    payload = cache.get(key)
    segment = _unpack(payload, data, cutter.rules.block_size) if payload is not None else None
    if segment is None:
        segment = cutter.cut_before(data, phase)
        if segment is not None:
            cache.put(key, _pack(segment))
    return segment


def _pack(segment: Segment) -> list[bytes | memoryview]:
    """Encode the number of extents, each one's length and blocks (top bit: raw), then the compressed pclusters."""
    numbers = [len(segment.extents)]
    for extent in segment.extents:
        numbers += (extent.length, extent.blocks | extent.raw << 31)
    # a fragment (the last extent) has no chunk
    compressed = [c for e, c in zip(segment.extents, segment.chunks, strict=False) if not e.raw]
    return [struct.pack(f"<{len(numbers)}I", *numbers), *compressed]


def _unpack(payload: bytes, data: bytes, block_size: int) -> Segment | None:
    """Decode what `_pack` stored, with raw runs taken from the content; None if it does not fit the content."""
    if len(payload) < 4:
        return None
    count = int.from_bytes(payload[:4], "little")
    at = 4 + 8 * count
    if len(payload) < at:
        return None
    numbers = struct.unpack_from(f"<{2 * count}I", payload, 4)
    segment = Segment([], [])
    blob, source = memoryview(payload), memoryview(data)
    start = 0
    for length, field in zip(numbers[::2], numbers[1::2], strict=True):
        blocks, raw = field & 0x7FFFFFFF, bool(field >> 31)
        segment.extents.append(Extent(length, blocks, raw))
        if raw:
            segment.chunks.append(source[start : start + length])
        elif not blocks:  # the end of the file: an inline tail is the rest of the payload, a fragment has none
            if at < len(payload):
                segment.chunks.append(blob[at:])
            at = len(payload)
        else:
            segment.chunks.append(blob[at : at + blocks * block_size])
            at += blocks * block_size
        start += length
    return segment if start == len(data) and at == len(payload) else None
