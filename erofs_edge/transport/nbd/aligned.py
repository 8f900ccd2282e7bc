# SPDX-License-Identifier: Apache-2.0
"""Read any byte range of an export, even if its server only serves whole blocks."""

from __future__ import annotations

from erofs_edge.transport.nbd.connect import Connection


class AlignedReads:
    """Byte ranges of an export, for one thread at a time. Raises DeviceError and ProtocolError as the connection
    does.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.size = connection.size  # bytes

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset` on; all must exist."""
        unit = max(self._connection.export.block_min, 1)
        start = offset // unit * unit
        end = min(-(-(offset + length) // unit) * unit, self.size)
        data = self._connection.read(start, end - start)
        return data if len(data) == length else data[offset - start :][:length]
