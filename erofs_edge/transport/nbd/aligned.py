# SPDX-License-Identifier: Apache-2.0
"""Reads of any bytes of an export, also of one whose server takes whole blocks only."""

from __future__ import annotations

from erofs_edge.transport.nbd.connect import Connection


class AlignedReads:
    """Bytes of an export, from one thread at a time. Raises DeviceError and ProtocolError as the connection does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.size = connection.size  # bytes

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; all must be there."""
        unit = max(self._connection.export.block_min, 1)
        start = offset // unit * unit
        end = min(-(-(offset + length) // unit) * unit, self.size)
        data = self._connection.read(start, end - start)
        return data if len(data) == length else data[offset - start :][:length]
