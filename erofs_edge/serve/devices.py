# SPDX-License-Identifier: Apache-2.0
"""A writable disk for each device, created when it first asks: its own changes over a common base, or over nothing.

A device is identified by its export's name: data/NAME. On the server each has NAME.data, a sparse file as large as its
disk, and, over a base, NAME.map, a bit for each block of 4096 bytes that the device has written. The base is never
written. A bit is set after its block was written, so a server that is killed loses no write that it had answered.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from erofs_edge.errors import CapacityError, ErofsEdgeError, SourceError
from erofs_edge.serve.export import BLOCK, EXTENTS_MAX, Export, FileExport
from erofs_edge.transport.nbd import wire
from erofs_edge.writing import sync_data

PREFIX = "data/"
DEVICES_MAX = 10_000
"""anyone who reaches the server may create disks, so their number is limited"""
PIECE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CopyOnWrite(FileExport):
    """The device's file over a base of the same size. Raises SourceError if a file cannot be opened."""

    direct = False

    def __init__(self, base: Path, data: Path, description: str = "") -> None:
        with ExitStack() as opened:
            self._base = FileExport(base)
            opened.callback(self._base.close)
            _make(data, self._base.offer.size)
            super().__init__(data, writable=True, description=description)
            opened.callback(super().close)  # with its lock, which would keep out the next attempt
            if self.offer.size != self._base.offer.size:
                raise SourceError(
                    f"this disk has {self.offer.size} bytes, its base now has {self._base.offer.size}", where=str(data),
                    hint="the base was changed: use a new --devices folder for it",
                )  # fmt: skip
            count = -(-self.offer.size // (8 * BLOCK))
            marks = data.with_suffix(".map")
            _make(marks, count)
            self._marks = os.open(marks, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, self._marks)
            self._own = bytearray(os.pread(self._marks, count, 0))
            self._opened = opened.pop_all()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            return self._merged(offset, length)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        with self._lock:
            self._put(offset, bytes(data))

    def zero(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, PIECE):
            self.write(at, bytes(min(PIECE, offset + length - at)))

    def flush(self) -> None:
        super().flush()
        sync_data(self._marks)

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Blocks that the device has written are data; for the others the base decides."""
        end, found = offset + length, list[tuple[int, int]]()
        with self._lock:
            runs = list(self._runs(offset, length))
        for own, start, stop in runs:
            if own:
                found.append((stop - start, 0))
                continue
            told = self._base.extents(start, stop - start)
            found += told
            if sum(size for size, _ in told) < stop - start or len(found) >= EXTENTS_MAX:  # covers only a part
                return found
        return found or [(end - offset, wire.STATE_HOLE | wire.STATE_ZERO)]

    def close(self) -> None:
        self._opened.close()

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """(whether written by the device, first byte, end) in order."""
        end = offset + length
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        for own, group in groupby(blocks, lambda block: bool(self._own[block >> 3] >> (block & 7) & 1)):
            members = list(group)
            yield own, max(members[0] * BLOCK, offset), min((members[-1] + 1) * BLOCK, end)

    def _merged(self, offset: int, length: int) -> bytes:
        return b"".join(
            super(CopyOnWrite, self).read(start, end - start) if own else self._base.read(start, end - start)
            for own, start, end in self._runs(offset, length)
        )

    def _put(self, offset: int, data: bytes) -> None:
        """Write whole blocks: partial ones at the ends are completed with the present content."""
        size, end = self.offer.size, offset + len(data)
        first, last = offset // BLOCK * BLOCK, min(-(-end // BLOCK) * BLOCK, size)
        whole = self._merged(first, offset - first) + data + self._merged(end, last - end)
        super().write(first, whole)
        low, high = first // BLOCK, -(-last // BLOCK)
        for block in range(low, high):
            self._own[block >> 3] |= 1 << (block & 7)
        os.pwrite(self._marks, self._own[low >> 3 : (high + 7) >> 3], low >> 3)


class Devices(Mapping[str, Export]):
    """The exports `fixed`, and one for each device that asks, in `folder`. Only the fixed ones are listed.

    base  the initial content of a device's disk: a file, or a size in bytes for an empty one
    """

    def __init__(self, fixed: Mapping[str, Export], folder: Path, base: Path | int) -> None:
        self._fixed = dict(fixed)
        self._folder = folder
        self._base = base
        self._lock = threading.Lock()
        self._open: dict[str, FileExport] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceError(f"no folder for the devices' disks: {error.strerror}", where=str(folder)) from error

    def __getitem__(self, name: str) -> Export:
        """The device's disk, created if needed. Raises KeyError for an invalid name, or if there are too many."""
        if name in self._fixed:
            return self._fixed[name]
        device = _device(name)
        if device is None:
            raise KeyError(name)
        with self._lock:
            if device not in self._open:
                data = self._folder / f"{device}.data"
                if not data.exists() and len(list(self._folder.glob("*.data"))) >= DEVICES_MAX:
                    raise KeyError(name)
                self._open[device] = self._opened(device, data)
            return self._open[device]

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self[name] is not None
        except (KeyError, ErofsEdgeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._fixed)

    def __len__(self) -> int:
        return len(self._fixed)

    def close(self) -> None:
        """Close the devices' disks, not the fixed exports."""
        with self._lock:
            for export in self._open.values():
                export.flush()
                export.close()
            self._open.clear()

    def _opened(self, device: str, data: Path) -> FileExport:
        about = f"disk of the device {device}"
        if isinstance(self._base, Path):
            return CopyOnWrite(self._base, data, about)
        _make(data, self._base)
        return FileExport(data, writable=True, description=about)


def _device(name: str) -> str | None:
    device = name.removeprefix(PREFIX)
    return device if name.startswith(PREFIX) and _NAME.fullmatch(device) else None


def _make(path: Path, size: int) -> None:
    """Create a file of holes, if there is none. Raises CapacityError."""
    if path.exists():
        return
    try:
        with path.open("xb") as file:
            file.truncate(size)
    except OSError as error:
        raise CapacityError(f"cannot make a disk of {size} bytes: {error.strerror}", where=str(path)) from error
