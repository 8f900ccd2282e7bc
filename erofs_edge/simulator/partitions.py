# SPDX-License-Identifier: Apache-2.0
"""The partitions of a simulated disk by name, as a device's boot loader sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from erofs_edge.disk import gpt
from erofs_edge.errors import FormatError
from erofs_edge.simulator.disk import SimulatedDisk

SECTOR = 512
TABLE = 34 * SECTOR  # bytes at either end that contain a whole table


class Window:
    """A part of a disk, read and written like a bytearray, by slices."""

    def __init__(self, disk: SimulatedDisk, start: int, size: int) -> None:
        self._disk, self._start, self._size = disk, start, size

    @property
    def start(self) -> int:
        """Offset of its first byte on the disk."""
        return self._start

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self._size)
        return self._disk.read(self._start + start, max(0, stop - start))

    def __setitem__(self, where: slice, data: bytes | bytearray | memoryview) -> None:
        start, _, _ = where.indices(self._size)
        if start + len(data) > self._size:
            raise FormatError("past the end of the partition")
        self._disk.write(self._start + start, data)


class DiskPartitions(Mapping[str, Window]):
    """The partitions in the disk's current table."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self._known: tuple[bytes, dict[str, tuple[int, int]]] = b"", {}

    def __getitem__(self, name: str) -> Window:
        start, end = self._places()[name]
        return Window(self.disk, start, end - start)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places())

    def __len__(self) -> int:
        return len(self._places())

    def write_table(self, raw: bytes) -> None:
        """Write a protective MBR and a GPT, given as the start of a disk; the backup is made from them.

        Raises FormatError if it is not a table, or one for a larger disk.
        """
        size = self.disk.size
        table = gpt.decode(lambda offset, length: raw[offset : offset + length], size, SECTOR)
        head, tail = gpt.encode(table)
        if table.sectors * SECTOR > size:
            raise FormatError("the table is for a larger disk")
        self.disk.write(table.sectors * SECTOR - len(tail), tail)
        self.disk.flush()
        self.disk.write(0, head)
        self.disk.flush()

    def _places(self) -> dict[str, tuple[int, int]]:
        raw = self.disk.read(0, TABLE) + self.disk.read(max(0, self.disk.size - TABLE), TABLE)
        if raw != self._known[0]:
            try:
                self._known = raw, gpt.decode(self.disk.read, self.disk.size, SECTOR).places()
            except FormatError:
                self._known = raw, {}
        return self._known[1]
