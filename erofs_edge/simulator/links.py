# SPDX-License-Identifier: Apache-2.0
"""Links that lose, repeat, reorder, cut and corrupt data, the same way each time.

A link takes what was sent and returns what arrives: packets for datagrams, bytes for lines. It counts time but does not
wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class BadPackets:
    """Datagrams on a bad link, usable as the `fault` of `serve_udp`. Rates are probabilities from 0 to 1 per packet.

    A late packet arrives after the next one.
    """

    random: Random
    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    corrupted: float = 0.0
    _waiting: list[bytes] = field(default_factory=list)

    def __call__(self, packet: bytes) -> list[bytes]:
        """What arrives when this is sent."""
        ready, self._waiting = self._waiting, []
        if self.random.random() < self.lost:
            return ready
        if packet and self.random.random() < self.corrupted:
            packet = flipped(packet, self.random)
        if self.random.random() < self.late:
            self._waiting = [packet]
            return ready
        copies = 2 if self.random.random() < self.repeated else 1
        return [packet] * copies + ready


@dataclass(slots=True)
class BadLine:
    """Bytes on a bad line: each may be lost, doubled or have a bit flipped with these probabilities.

    `seconds` is how long the line was busy, at `rate` bytes per second (0 takes no time); the line dies for good after
    `dies_after` bytes.
    """

    random: Random
    lost: float = 0.0
    doubled: float = 0.0
    corrupted: float = 0.0
    rate: float = 0.0
    dies_after: int | None = None
    seconds: float = 0.0
    carried: int = 0

    def __call__(self, data: bytes) -> bytes:
        """What arrives when this is sent."""
        if self.dies_after is not None:
            data = data[: max(0, self.dies_after - self.carried)]
        self.carried += len(data)
        if self.rate:
            self.seconds += len(data) / self.rate
        if not (self.lost or self.doubled or self.corrupted):
            return data
        arrived = bytearray()
        for byte in data:
            chance = self.random.random()
            if chance < self.lost:
                continue
            if chance < self.lost + self.doubled:
                arrived.append(byte)
            elif chance < self.lost + self.doubled + self.corrupted:
                arrived.append(byte ^ 1 << self.random.randrange(8))
                continue
            arrived.append(byte)
        return bytes(arrived)


def flipped(data: bytes, random: Random) -> bytes:
    """The data with one bit flipped."""
    changed = bytearray(data)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)
