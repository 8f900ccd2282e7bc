# SPDX-License-Identifier: Apache-2.0
"""What is done with a fastboot device: ask it, and give it images in pieces that it can hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from erofs_edge.disk import android_sparse
from erofs_edge.disk.android_sparse import BLOCK
from erofs_edge.disk.sparse import data_extents
from erofs_edge.errors import CapacityError, DeviceRefusedError, SourceError
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device

FETCH_MAX = 1 << 30  # bytes
BUFFER_DEFAULT = 16 << 20  # bytes, of a device that does not say what it can hold
PART = 1 << 20

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


class Fastboot:
    """One device. Raises DeviceRefusedError with its reason where it says no, DeviceError where it is lost."""

    def __init__(self, device: Device, say: Say = lambda _: None) -> None:
        self._device = device
        self._say = say

    def variable(self, name: str) -> str:
        return self._device.run(client.variable(name)).value

    def variables(self) -> dict[str, str]:
        """All that the device lists."""
        return client.parse_variables(self._device.run(client.command("getvar:all")).lines)

    def command(self, text: str) -> None:
        self._device.run(client.command(text, self._say))

    def fetch(self, text: str) -> bytes:
        return self._device.run(client.upload(text, FETCH_MAX, self._say)).data

    def stage(self, image: Path) -> None:
        """Put a file into the device's memory."""
        size, limit = _size(image), self._limit()
        if size > limit:
            raise CapacityError(f"the device holds {limit} bytes, the image has {size}", where=str(image))
        self._device.run(client.download(size, _parts(image, size, size), self._say))

    def flash(self, partition: str, image: Path, progress: Progress = lambda done, total: None) -> int:
        """Make a partition hold an image; the bytes sent. Zeros are sent as such, not byte by byte.

        Raises CapacityError where the partition is too small, before anything is sent.
        """
        size = _size(image)
        capacity = self._capacity(partition)
        if capacity is not None and size > capacity:
            raise CapacityError(
                f"{partition} has {capacity} bytes, the image needs {size - capacity} more", where=str(image)
            )
        with image.open("rb") as file:
            extents = list(data_extents(file.fileno(), size))
            if android_sparse.is_sparse(file.read(4)):
                self.stage(image)
                self.command(f"flash:{partition}")
                return size
            limit = self._limit()
            pieces = android_sparse.plan_pieces(size, extents, limit)
            filled = -(-size // BLOCK) * BLOCK
            if filled <= limit and all(run.has_data for piece in pieces for run in piece.runs):
                # without a hole: as it is, which U-Boot writes from where it lies in memory, aligned
                self._device.run(client.download(filled, _parts(image, size, filled), self._say))
                self.command(f"flash:{partition}")
                progress(filled, filled)
                return filled
            total, sent = sum(piece.size for piece in pieces), 0
            for piece in pieces:
                parts = piece.encode(lambda offset, length: os.pread(file.fileno(), length, offset))
                self._device.run(client.download(piece.size, parts, self._say))
                self.command(f"flash:{partition}")
                sent += piece.size
                progress(sent, total)
        return sent

    def _limit(self) -> int:
        """Bytes of a download."""
        for name in ("max-download-size", "downloadsize"):
            try:
                return client.parse_number(self.variable(name))
            except DeviceRefusedError:
                continue
        return BUFFER_DEFAULT

    def _capacity(self, partition: str) -> int | None:
        """Bytes of a partition, None where the device does not say."""
        try:
            return client.parse_number(self.variable(f"partition-size:{partition}"))
        except DeviceRefusedError:
            return None


def _size(image: Path) -> int:
    try:
        size = image.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(image)) from error
    if not size:
        raise SourceError("the image is empty", where=str(image))
    return size


def _parts(image: Path, size: int, filled: int) -> Iterator[bytes]:
    """The file, and zeros until there are `filled` bytes."""
    with image.open("rb") as file:
        for at in range(0, size, PART):
            data = file.read(min(PART, size - at))
            if not data:
                raise SourceError("the image became shorter while it was being read", where=str(image))
            yield data
    if filled > size:
        yield bytes(filled - size)
