# SPDX-License-Identifier: Apache-2.0
"""Decode extents to bytes.

Source: ``fs/erofs/decompressor.c`` (leading zeros of a pcluster, interlaced data, exact lengths).
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import FormatError


@cache
def _decompress(algorithm: int) -> Callable[..., bytes | memoryview]:
    """Return decompress(data, size, *, partial) → `size` bytes, or FormatError. Codecs are imported on first use."""
    module = importlib.import_module(f"erofs_edge.codec.{ondisk.ALGORITHM_NAMES[algorithm]}")
    decompress: Callable[..., bytes] = module.decompress
    return getattr(module, "decompress_lent", decompress)


def decode(backing: Backing, info: SuperInfo, extent: Extent) -> bytes:
    """Decode a raw, rotated or encoded extent. Raises ErofsFormatError if it does not decode.

    Never allocates more than the extent's length and its pcluster.
    """
    return bytes(decode_lent(backing, info, extent))


def decode_lent(backing: Backing, info: SuperInfo, extent: Extent) -> bytes | memoryview:
    """Like `decode`, but the thread's next call may overwrite what is returned."""
    if extent.kind is Kind.RAW:
        return backing.read(extent.address, extent.length, "file data")
    if extent.kind is Kind.ROTATED:
        block = backing.read(extent.address, extent.size, "file data")
        turn = extent.start % info.block_size
        return (block[turn:] + block[:turn])[: extent.length]
    decompress = _decompress(extent.algorithm)
    data = backing.read(extent.address, extent.size, "pcluster")
    padded = info.incompat(ondisk.INCOMPAT_LZ4_0PADDING)
    if padded and not data[0]:
        stream = data.lstrip(b"\0")
        if len(data) - len(stream) >= info.block_size:
            raise broken(f"pcluster starts with {len(data) - len(stream)} zero bytes", extent.address)
        data = stream
    try:
        return decompress(data, extent.length, partial=extent.partial or not padded)
    except FormatError as error:
        raise broken(error.message, extent.address) from error


class ExtentCache:
    """The decoded bytes of the most recently used extents, `limit` bytes at most. Safe for several threads."""

    def __init__(self, backing: Backing, info: SuperInfo, limit: int) -> None:
        self._backing, self._info, self._limit = backing, info, limit
        self._items: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def decode(self, extent: Extent) -> bytes:
        """Like `decode`, but from memory where possible."""
        turn = extent.start % self._info.block_size if extent.kind is Kind.ROTATED else 0
        key = extent.address, turn, extent.length
        with self._lock:
            data = self._items.get(key)
            if data is not None:
                self._items.move_to_end(key)
                return data
        data = decode(self._backing, self._info, extent)
        with self._lock:
            if len(data) <= self._limit and key not in self._items:
                self._items[key] = data
                self._held += len(data)
                while self._held > self._limit:
                    self._held -= len(self._items.popitem(last=False)[1])
        return data
