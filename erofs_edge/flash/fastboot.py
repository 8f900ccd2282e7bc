# SPDX-License-Identifier: Apache-2.0
"""Talk to a fastboot device: query it, and send it images in pieces that it can hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from erofs_edge.disk import android_sparse
from erofs_edge.disk.android_sparse import BLOCK
from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import CapacityError, DeviceRefusedError, ProtocolError, SourceError, UsageError
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device

FETCH_MAX = 1 << 30  # bytes
PIECE_MAX = 64 << 20  # bytes of a partition requested at once
SLOTS_MAX = 26
BUFFER_DEFAULT = 16 << 20  # bytes, for a device that does not report its limit
PART = 1 << 20

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


class Fastboot:
    """One device. Raises DeviceRefusedError with the device's reason if it refuses, DeviceError if it is lost."""

    def __init__(self, device: Device, say: Say = lambda _: None) -> None:
        self._device = device
        self._say = say

    def variable(self, name: str) -> str:
        return self._device.run(client.variable(name)).value

    def variables(self) -> dict[str, str]:
        """All variables that the device lists."""
        return client.parse_variables(self._device.run(client.command("getvar:all")).lines)

    def command(self, text: str) -> None:
        self._device.run(client.command(text, self._say))

    def fetch(self, text: str) -> bytes:
        """What the device sends for a command (`upload`, `fetch:…`), at most FETCH_MAX bytes."""
        return self._device.run(client.upload(text, FETCH_MAX, self._say)).data

    def fetch_partition(self, partition: str) -> Iterator[bytes]:
        """Read a partition in pieces of the size that the device offers; all at once if it reports no size."""
        most = self._number("max-fetch-size")
        size = self._capacity(partition)
        if most is None or size is None or size <= most:
            yield self.fetch(f"fetch:{partition}")
            return
        most = min(most, PIECE_MAX)
        if not most:
            raise DeviceRefusedError("the device does not allow reading: its max-fetch-size is 0", where=partition)
        for at in range(0, size, most):
            length = min(most, size - at)
            data = self.fetch(f"fetch:{partition}:{at:#x}:{length:#x}")
            if len(data) != length:
                raise ProtocolError(f"the device sent {len(data)} bytes where {length} were asked for", where=partition)
            yield data

    def named(self, partition: str, slot: str | None = None) -> list[str]:
        """The partitions that a name stands for. If the partition has slots (`has-slot`), that of `slot`, which may be
        'other' or 'all'; without `slot`, that of the current slot.

        Raises UsageError if a slot is given for a partition without slots, or if the device does not have that slot.
        """
        if self._told(f"has-slot:{partition}") != "yes":
            if slot in (None, "all"):
                return [partition]
            raise UsageError(f"{partition} has no slots", hint="leave --slot out")
        if slot is None:
            current = self._told("current-slot").strip("_")
            return [f"{partition}_{current}" if current else partition]
        if slot == "all" and (slots := self._slots()):
            return [f"{partition}_{name}" for name in slots]
        if slot == "all":
            raise UsageError("the device does not say which slots it has", hint="name one, for example --slot a")
        return [f"{partition}_{self.slot(slot)}"]

    def slot(self, name: str) -> str:
        """The slot that a name stands for: 'other' is the one after the current slot. Raises UsageError if the device
        does not report which slot is current."""
        if name != "other":
            return name.strip("_")
        current, slots = self._told("current-slot").strip("_"), self._slots()
        if current not in slots or len(slots) < 2:
            raise UsageError("the device does not say which slot 'other' is", hint="name one: a, b, …")
        return slots[(slots.index(current) + 1) % len(slots)]

    def _slots(self) -> list[str]:
        return [chr(ord("a") + number) for number in range(min(self._number("slot-count") or 0, SLOTS_MAX))]

    def stage(self, image: Path) -> None:
        """Put a file into the device's memory."""
        size, limit = _size(image), self._limit()
        if size > limit:
            raise CapacityError(f"the device takes at most {limit} bytes, the image has {size}", where=str(image))
        self._device.run(client.download(size, _parts(image, size, size), self._say))

    def flash(self, partition: str, image: Path, progress: Progress = lambda done, total: None) -> int:
        """Write an image to a partition and return the number of bytes sent. Zeros are sent as sparse chunks, not as
        data.

        Raises CapacityError, before anything is sent, if the partition is too small.
        """
        size = _size(image)
        with image.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            sparse = android_sparse.SparseFile(read, size) if android_sparse.is_sparse(read(0, 4)) else None
            needed, limit = sparse.size if sparse else size, self._limit()
            capacity = self._capacity(partition)
            if capacity is not None and needed > capacity:
                raise CapacityError(
                    f"{partition} has {capacity} bytes, the image needs {needed - capacity} more", where=str(image)
                )
            if sparse is None:
                pieces = android_sparse.plan_pieces(size, list(data_extents(file.fileno(), size)), limit)
            elif size > limit:
                pieces, read = sparse.pieces(limit), sparse.read
            filled = size if sparse else -(-size // BLOCK) * BLOCK
            if filled <= limit and (sparse or all(run.has_data for piece in pieces for run in piece.runs)):
                # sparse already, or without a hole: sent unchanged, since U-Boot writes it from an aligned place in
                # memory
                self._device.run(client.download(filled, _parts(image, size, filled), self._say))
                self.command(f"flash:{partition}")
                progress(filled, filled)
                return filled
            total, sent = sum(piece.size for piece in pieces), 0
            for piece in pieces:
                self._device.run(client.download(piece.size, piece.encode(read), self._say))
                self.command(f"flash:{partition}")
                sent += piece.size
                progress(sent, total)
        return sent

    def _limit(self) -> int:
        """Bytes of a download."""
        found = self._number("max-download-size")
        found = found if found is not None else self._number("downloadsize")
        return BUFFER_DEFAULT if found is None else min(found, client.DOWNLOAD_MAX)

    def _capacity(self, partition: str) -> int | None:
        """Size of a partition in bytes; None if the device does not report it."""
        text = self._told(f"partition-size:{partition}")
        return client.parse_size(text) if text else None

    def _number(self, name: str) -> int | None:
        """A variable as a number; None if the device does not report it."""
        text = self._told(name)
        return client.parse_number(text) if text else None

    def _told(self, name: str) -> str:
        """A variable; '' if the device does not report it."""
        try:
            return self.variable(name)
        except DeviceRefusedError:
            return ""


def _size(image: Path) -> int:
    try:
        info = image.stat()
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(image)) from error
    if not stat.S_ISREG(info.st_mode):
        hint = "save its output to a file first"
        raise UsageError("a pipe or a device, not an image", where=str(image), hint=hint)
    size = info.st_size
    if not size:
        raise SourceError("the image is empty", where=str(image))
    return size


def _parts(image: Path, size: int, filled: int) -> Iterator[bytes]:
    """The file, followed by zeros up to `filled` bytes."""
    with image.open("rb") as file:
        for at in range(0, size, PART):
            data = file.read(min(PART, size - at))
            if not data:
                raise SourceError("the image became shorter while it was being read", where=str(image))
            yield data
    if filled > size:
        yield bytes(filled - size)
