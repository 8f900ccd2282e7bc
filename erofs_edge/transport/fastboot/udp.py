# SPDX-License-Identifier: Apache-2.0
"""Fastboot's packets over UDP, the host's side: sequence numbers and repeats, without a socket or a clock.

One packet is under way at a time; the owner sends `packet`, hears answers, and sends again what is not answered in
time. A packet that comes late or twice has an old number and is dropped.

U-Boot speaks without being asked while it writes: INFO each 30 seconds, with the numbers of the answers to packets that
it has not heard yet, and it says none of them again but the last (2025.01, net/fastboot_udp.c
`fastboot_timed_send_info`). Where one was lost, the next is the answer: otherwise each side waited for the other for
ever.

Source: the fastboot specification, "UDP Protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from erofs_edge.errors import DeviceError, ProtocolError

PORT = 5554
VERSION = 1
PACKET_MIN, PACKET_MAX = 512, 1472  # bytes: what every device takes; what an Ethernet frame holds
_HEADER = Struct(">BBH")  # id, flags, sequence number
_PAIR = Struct(">HH")
CONTINUES = 1
AHEAD = 1000
"""messages that a device may have said unheard: eight hours of writing"""


class Kind(IntEnum):
    """What a packet is."""

    ERROR = 0
    QUERY = 1
    INIT = 2
    FASTBOOT = 3


@dataclass(slots=True)
class Answer:
    """The device's answer to the packet: a (part of a) message. `more`: it goes on in the next packet."""

    data: bytes
    more: bool


class Host:
    """The state of one conversation."""

    def __init__(self) -> None:
        self._sequence = 0
        self._kind = Kind.QUERY
        self._size = PACKET_MIN
        self.packet = _HEADER.pack(Kind.QUERY, 0, 0)

    @property
    def is_open(self) -> bool:
        return self._kind is Kind.FASTBOOT

    @property
    def payload_max(self) -> int:
        """Bytes of a message that one packet carries."""
        return self._size - _HEADER.size

    @property
    def _asks(self) -> bool:
        """Whether the packet only asks for what the device has to say."""
        return self._kind is Kind.FASTBOOT and len(self.packet) == _HEADER.size

    def say(self, data: bytes | memoryview, *, more: bool) -> None:
        """The next packet. An empty one asks for what the device has to say."""
        if len(data) > self.payload_max:
            raise ValueError(f"{len(data)} bytes in a packet of {self._size}")
        self.packet = _HEADER.pack(Kind.FASTBOOT, CONTINUES if more else 0, self._sequence) + bytes(data)

    def hear(self, packet: bytes) -> Answer | None:
        """What a packet means: the answer, or None where it is none (an old one, or a step of the opening)."""
        if len(packet) < _HEADER.size:
            return None
        kind, flags, sequence = _HEADER.unpack_from(packet)
        data = packet[_HEADER.size :]
        if kind == Kind.ERROR and sequence == self._sequence:
            raise DeviceError(f"the device reports an error: {data.decode('utf-8', 'replace')}")
        ahead = sequence - self._sequence & 0xFFFF
        if 0 < ahead <= AHEAD and kind == self._kind == Kind.FASTBOOT and self._asks:
            self._sequence = sequence
        if kind != self._kind or (sequence != self._sequence and kind != Kind.QUERY):
            return None
        if self._kind is Kind.FASTBOOT:
            self._sequence = self._sequence + 1 & 0xFFFF
            return Answer(data, bool(flags & CONTINUES))
        self._open(data)
        return None

    def _open(self, data: bytes) -> None:
        if self._kind is Kind.QUERY:
            if len(data) < 2:
                raise ProtocolError("the device does not say which packet it expects")
            self._sequence = int.from_bytes(data[:2], "big")
            self._kind = Kind.INIT
            self.packet = _HEADER.pack(Kind.INIT, 0, self._sequence) + _PAIR.pack(VERSION, PACKET_MAX)
            return
        if len(data) < _PAIR.size:
            raise ProtocolError("the device does not say which version it speaks")
        version, size = _PAIR.unpack_from(data)
        if version < VERSION or size < PACKET_MIN:
            raise ProtocolError(f"the device speaks version {version} in packets of {size} bytes")
        self._size = min(size, PACKET_MAX)
        self._sequence = self._sequence + 1 & 0xFFFF
        self._kind = Kind.FASTBOOT
