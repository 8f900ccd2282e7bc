# SPDX-License-Identifier: Apache-2.0
"""A simulated disk as a target, with any of the abilities that a board's provisioning system may have."""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Iterator, Sequence

from erofs_edge.flash.target import Ability, Identity, PlainTarget
from erofs_edge.simulator.disk import SimulatedDisk

BLOCK = 4096


class SimulatedTarget(PlainTarget):
    """A simulated disk as a target.

    abilities  what it can do; `hash_name` 'sha256' or 'crc32'
    short      bytes that one write takes at most
    sent       bytes of data and deltas received by the target
    answered   bytes of data and digests returned by it
    copied, patched  bytes that were made inside the target"""

    def __init__(
        self,
        disk: SimulatedDisk,
        abilities: Ability = Ability.READ,
        *,
        hash_name: str = "sha256",
        short: int | None = None,
    ) -> None:
        self.disk = disk
        self._abilities = abilities
        self._hash_name = hash_name
        self._short = short
        self.sent = self.answered = self.copied = self.patched = 0
        self.finished = self.restarted = False

    @property
    def identity(self) -> Identity:
        return Identity("simulated", "nbd", self.disk.size)

    @property
    def abilities(self) -> Ability:
        return self._abilities

    @property
    def hash_name(self) -> str:
        return self._hash_name

    @property
    def bytes_on_wire(self) -> int | None:
        return self.sent + self.answered

    def read(self, offset: int, length: int) -> bytes:
        self._need(Ability.READ)
        data = self.disk.read(offset, length)
        self.answered += len(data)
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        length = len(data) if self._short is None else min(len(data), self._short)
        self.disk.write(offset, data[:length])
        self.sent += length
        return length

    def zero(self, offset: int, length: int) -> None:
        self.disk.write(offset, bytes(length))

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._need(Ability.HASH)
        found = []
        for offset, length in ranges:
            data = self.disk.read(offset, length)
            found.append(
                hashlib.sha256(data).digest() if self._hash_name == "sha256" else zlib.crc32(data).to_bytes(4, "big")
            )
        self.answered += sum(map(len, found))
        return found

    def copy(self, source: int, offset: int, length: int) -> None:
        self._need(Ability.COPY)
        self.disk.write(offset, self.disk.read(source, length))
        self.copied += length

    def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
        import zstandard

        self._need(Ability.PATCH)
        reference = None
        if source_length:
            content = self.disk.read(source, source_length)
            reference = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        try:
            decoder = zstandard.ZstdDecompressor(dict_data=reference, max_window_size=1 << 31)
            data = decoder.stream_reader(delta, read_across_frames=True).read(length + 1)
        except zstandard.ZstdError as error:
            raise OSError(errno.EBADMSG, f"the delta does not unpack: {error}") from error
        if len(data) != length:
            raise OSError(errno.EBADMSG, f"the delta does not give the {length} bytes that were announced")
        self.sent += len(delta)
        for at in range(0, length, BLOCK):
            block = data[at : at + BLOCK]
            if self.disk.read(offset + at, len(block)) != block:
                self.disk.write(offset + at, block)
                self.patched += len(block)

    def activate(self, slot: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "the slot state is on the disk")

    def reboot(self) -> None:
        self._need(Ability.REBOOT)
        self.restarted = True

    def flush(self) -> None:
        self.disk.flush()

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        """Nothing to do."""

    def _need(self, ability: Ability) -> None:
        if ability not in self._abilities:
            raise OSError(errno.EOPNOTSUPP, f"the target has no ability {ability.name}")
