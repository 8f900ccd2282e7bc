# SPDX-License-Identifier: Apache-2.0
"""A U-Boot in fastboot mode that consents to be asked what its disk holds: digests are made there, and all is proved.

What of its own partitions differs from those of the image is its business as for every fastboot device: ranges are
asked for by the place that it says a partition has.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence

from erofs_edge.errors import DeviceRefusedError
from erofs_edge.flash.fastboot_target import ROOM, FastbootTarget
from erofs_edge.flash.survey import chunks, zero_digest
from erofs_edge.flash.target import Ability
from erofs_edge.transport.fastboot import client
from erofs_edge.transport.fastboot.link import Device
from erofs_edge.transport.fastboot.uboot import PIECE_MAX, SECTOR, Talk, UBoot

READ_STEPS = (64 << 10, 4096, SECTOR)  # bytes, of what is asked whether it is zeros before it is read
AT_ONCE = 1 << 20
"""bytes that the card is told to read or write by one command, for which U-Boot waits a second: an emulated card moved
8 MiB slower than that on a busy host"""
STEPS = (1 << 20, 64 << 10)
"""bytes of the pieces that are asked for: an answer takes as long as writing some tens of KiB"""


class UBootTarget(FastbootTarget):
    """As `FastbootTarget`, readable for a few KiB at a time, which is what the slot state needs."""

    def __init__(self, device: Device, uboot: UBoot, places: Mapping[str, tuple[int, int]], size: int) -> None:
        # it answers nothing while it writes: how far it is shows after each, and what fails is not much to do again
        super().__init__(device, places, size, most=PIECE_MAX + ROOM)
        self._uboot = uboot
        self._starts: dict[str, int] = {}

    @property
    def abilities(self) -> Ability:
        return super().abilities | Ability.READ | Ability.HASH

    @property
    def hash_name(self) -> str:
        return "sha256-232"

    @property
    def steps(self) -> tuple[int, ...]:
        return STEPS

    def make_table(self, raw: bytes) -> None:
        self._starts.clear()
        super().make_table(raw)

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Zeros are found by their digests: reading them takes less than writing, and wears nothing."""
        for at, size in chunks([(offset, offset + length)], AT_ONCE):
            if self.digests([(at, size)]) != [zero_digest(self.hash_name, size)]:
                yield at, at + size

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """In chunks of sparse images that it writes by a command each."""
        view = memoryview(data)
        for at in range(0, len(view), AT_ONCE):
            super().write(offset + at, view[at : at + AT_ONCE])
        return len(view)

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._send()
        return self._device.run(self._uboot.digests([(self._place(at, length), length) for at, length in ranges]))

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // SECTOR * SECTOR, -(-(offset + length) // SECTOR) * SECTOR
        data = bytearray(last - first)
        wanted = [(first, last)]
        for step in READ_STEPS:
            pieces = list(chunks(wanted, step))
            found = zip(pieces, self.digests(pieces), strict=True)
            wanted = [(at, at + size) for (at, size), digest in found if digest != zero_digest(self.hash_name, size)]
        for at, size in chunks(wanted, SECTOR):
            data[at - first : at - first + size] = self._device.run(self._uboot.read(self._place(at, size), size))
        return bytes(data[offset - first : offset - first + length])

    def _flash(self, name: str, raw: bytes) -> None:
        def whole() -> Talk[None]:
            yield from client.download(len(raw), [raw])
            yield from client.command(f"flash:{name}")

        self._device.run(self._uboot.tried(whole))

    def _place(self, offset: int, length: int) -> int:
        """Where on its disk the device has a range of the image. Raises OSError where that is no single place."""
        pieces = list(self._pieces(offset, length))
        if len(pieces) != 1:
            raise OSError(errno.EINVAL, f"bytes {offset:#x} to {offset + length:#x} are in several partitions")
        name, at, _ = pieces[0]
        if name not in self._starts:
            try:
                self._starts[name] = self._device.run(self._uboot.start_of(name))
            except DeviceRefusedError as error:
                raise OSError(errno.ENXIO, f"the device has no partition {name}") from error
        return self._starts[name] + at
