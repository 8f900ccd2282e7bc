# SPDX-License-Identifier: Apache-2.0
"""Turn extents into bytes.

Source: ``fs/erofs/decompressor.c`` (leading zeros of a pcluster, interlaced data, exact lengths).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from erofs_edge.codec import deflate, lz4, lzma, zstd
from erofs_edge.erofs import ondisk
from erofs_edge.erofs.backing import Backing, broken, place
from erofs_edge.erofs.extents import Extent, Kind
from erofs_edge.erofs.superblock import SuperInfo
from erofs_edge.errors import ErofsFormatError, FormatError

DECODERS: dict[int, Callable[..., bytes]] = {
    ondisk.ALGORITHM_LZ4: lz4.decompress,
    ondisk.ALGORITHM_LZMA: lzma.decompress,
    ondisk.ALGORITHM_DEFLATE: deflate.decompress,
    ondisk.ALGORITHM_ZSTD: zstd.decompress,
}
"""algorithm → decompress(data, size, *, partial): exactly `size` bytes, or FormatError"""


def decode(backing: Backing, info: SuperInfo, extent: Extent) -> bytes:
    """The bytes of a raw, rotated or encoded extent. Raises ErofsFormatError where they do not decode.

    Never allocates more than the extent's length and its pcluster.
    """
    if extent.kind is Kind.RAW:
        return backing.read(extent.address, extent.length, "file data")
    if extent.kind is Kind.ROTATED:
        block = backing.read(extent.address, extent.size, "file data")
        turn = extent.start % info.block_size
        return (block[turn:] + block[:turn])[: extent.length]
    decompress = DECODERS.get(extent.algorithm)
    if decompress is None:
        raise ErofsFormatError(
            f"data compressed with {ondisk.ALGORITHM_NAMES[extent.algorithm]} is not supported",
            where=place(extent.address),
        )
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
    """The decoded bytes of the extents used last, at most `limit` bytes of them. For several threads."""

    def __init__(self, backing: Backing, info: SuperInfo, limit: int) -> None:
        self._backing, self._info, self._limit = backing, info, limit
        self._items: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def decode(self, extent: Extent) -> bytes:
        """As `decode`, from memory where possible."""
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
