# SPDX-License-Identifier: Apache-2.0
"""A U-Boot in fastboot mode that allows queries about its disk: digests are computed there, so everything is proved.

As with every fastboot device, its partitions may lie elsewhere than in the image: ranges are addressed by the place
that the device reports for a partition.
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

READ_STEPS = (64 << 10, 4096, SECTOR)  # bytes; pieces are checked for zeros in these steps before they are read
AT_ONCE = 1 << 20
"""bytes that one command tells the card to read or write; U-Boot waits a second for that, and an emulated card on a
busy host could not move 8 MiB in that time"""
STEPS = (1 << 20, 64 << 10)
"""bytes of the pieces whose digests are requested: an answer takes as long as writing some tens of KiB"""


class UBootTarget(FastbootTarget):
    """Like `FastbootTarget`, and readable a few KiB at a time, which is enough for the slot state."""

    def __init__(self, device: Device, uboot: UBoot, places: Mapping[str, tuple[int, int]], size: int) -> None:
        # it does not answer while it writes: small pieces show progress, and little has to be repeated after a failure
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
        """Zeros are found by their digests: reading them is quicker than writing, and causes no wear."""
        for at, size in chunks([(offset, offset + length)], AT_ONCE):
            if self.digests([(at, size)]) != [zero_digest(self.hash_name, size)]:
                yield at, at + size

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write in chunks of sparse images, which U-Boot writes with one command each."""
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
        """Where the device has a range of the image on its disk. Raises OSError if that is not a single place."""
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
