# SPDX-License-Identifier: Apache-2.0
"""Compress data into what U-Boot can unpack, to send fewer bytes: LZMA (`lzmadec`), gzip (`unzip`) and LZ4
(`unlz4`).
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Collection
from dataclasses import dataclass

WORTH = 0.97  # of the plain size: data that compresses less is sent unchanged
LZMA_BAUD = 1_000_000
"""the fastest line on which LZMA pays off: it takes half a second or more per MB to pack, and as long to unpack"""
_LZMA_SIZE = slice(5, 13)
"""position of the unpacked size in an .lzma header, little-endian; Python writes 'unknown', but U-Boot's decoder needs
it (lib/lzma/LzmaTools.c)"""


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes to send, and how to unpack them. `command` is '' for plain bytes."""

    data: bytes
    command: str

    def line(self, source: int, target: int, size: int) -> str:
        """The command line that unpacks from `source` to `target`; sizes in bytes."""
        limit = f" {size:x}" if self.command != "unlz4" else f" {size + 4096:x}"
        return f"{self.command} {source:x} {target:x}{limit}"


def _lzma(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(data, lzma.FORMAT_ALONE, filters=filters))
    packed[_LZMA_SIZE] = len(data).to_bytes(8, "little")
    return bytes(packed)


def _lz4(data: bytes) -> bytes:
    import lz4.frame

    packed: bytes = lz4.frame.compress(
        data, compression_level=9, block_linked=False, store_size=True, content_checksum=False
    )
    return packed


_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "lzmadec": _lzma,
    "unzip": lambda data: gzip.compress(data, 9, mtime=0),
    "unlz4": _lz4,
}
"""best first: compared with a slow line, the device unpacks any of them instantly"""


def pack(data: bytes, commands: Collection[str], baud: int = 0) -> Packed:
    """The shortest form that a device with these commands can unpack; without LZMA on lines faster than LZMA_BAUD."""
    best = Packed(data, "")
    for command, packer in _PACKERS.items():
        if command in commands and not (command == "lzmadec" and baud > LZMA_BAUD):
            packed = packer(data)
            if len(packed) < WORTH * len(data) and len(packed) < len(best.data):
                best = Packed(packed, command)
            if command == "unzip":
                break  # LZ4 is never shorter
    return best
