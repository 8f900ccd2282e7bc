# SPDX-License-Identifier: Apache-2.0
"""The host's side of fastboot over UDP: sequence numbers and repeats, without a socket or a clock.

The owner sends what `say` returns, passes in answers, and repeats what has been `under_way` too long. A packet that
arrives late or twice has an old number and is dropped.

A device handles packets in order: it obeys and answers one with the expected number, repeats its answer for the one
before, and ignores all others. So an answer to a packet shows that the earlier ones were received too, even if their
answers were lost; and the next packet may be sent before the answer arrives, provided that a lost one is repeated along
with those after it. The specification describes hosts that send one at a time "for simplicity of implementation".

U-Boot sends unrequested messages while it writes: INFO every 30 seconds, numbered as answers to packets that it has not
yet received, and it repeats only the last (2025.01, net/fastboot_udp.c `fastboot_timed_send_info`). If one was lost,
the next is taken as the answer; otherwise both sides would wait forever.

Source: the fastboot specification, "UDP Protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from erofs_edge.errors import DeviceError, ProtocolError

PORT = 5554
VERSION = 1
PACKET_MIN, PACKET_MAX = 512, 1472  # bytes: what every device accepts; what fits in an Ethernet frame
_HEADER = Struct(">BBH")  # id, flags, sequence number
_PAIR = Struct(">HH")
CONTINUES = 1
AHEAD = 1000
"""messages that a device may have sent unreceived: eight hours of writing"""


class Kind(IntEnum):
    """Kind of a packet."""

    ERROR = 0
    QUERY = 1
    INIT = 2
    FASTBOOT = 3


_FASTBOOT = int(Kind.FASTBOOT)


@dataclass(slots=True, frozen=True)
class Answer:
    """The device's answer to a packet: a message or part of one. `more`: it continues in the next packet."""

    data: bytes
    more: bool


_HEARD = Answer(b"", more=False)


class Host:
    """The state of one conversation.

    packet     the newest packet
    under_way  packets not known to have been received by the device, the oldest first
    is_open    whether the opening exchange is complete
    """

    def __init__(self) -> None:
        self._sequence = 0  # number of the first packet under way, or else of the next one
        self._kind = Kind.QUERY
        self._size = PACKET_MIN
        self._plain: list[bytes] = []  # for each packet under way: the plain acknowledgement to expect
        self.is_open = False
        self.packet = _HEADER.pack(Kind.QUERY, 0, 0)
        self.under_way = [self.packet]

    @property
    def payload_max(self) -> int:
        """Bytes of a message in one packet."""
        return self._size - _HEADER.size

    def say(self, data: bytes | memoryview, *, more: bool, ahead: bool = False) -> bytes:
        """The next packet. It replaces what is under way or, with `ahead`, follows it. An empty one asks for the
        device's next message."""
        if len(data) > self.payload_max:
            raise ValueError(f"{len(data)} bytes in a packet of {self._size}")
        if not ahead:
            self.under_way.clear()
            self._plain.clear()
        sequence = self._sequence + len(self.under_way) & 0xFFFF
        plain = _HEADER.pack(_FASTBOOT, 0, sequence)
        self.packet = b"".join((_HEADER.pack(_FASTBOOT, CONTINUES, sequence) if more else plain, data))
        self.under_way.append(self.packet)
        self._plain.append(plain)
        return self.packet

    def hear(self, packet: bytes) -> Answer | None:
        """Interpret a packet: return the answer to one under way, which also acknowledges those before it, or None if
        it is not an answer (an old one, or a step of the opening)."""
        if packet in self._plain:  # all but two packets of a download get this answer, so it is checked first
            return self._took(self._plain.index(packet) + 1, _HEARD)
        if len(packet) < _HEADER.size:
            return None
        kind, flags, sequence = _HEADER.unpack_from(packet)
        data = packet[_HEADER.size :]
        ahead = sequence - self._sequence & 0xFFFF
        if kind == Kind.ERROR and ahead < len(self.under_way):
            raise DeviceError(f"the device reports an error: {data.decode('utf-8', 'replace')}")
        if kind != self._kind:
            return None
        if not self.is_open:
            if sequence == self._sequence or kind == Kind.QUERY:
                self._open(data)
            return None
        if 0 < ahead <= AHEAD and self._asks:
            self._sequence, ahead = sequence, 0
        return self._took(ahead + 1, Answer(data, bool(flags & CONTINUES))) if ahead < len(self.under_way) else None

    @property
    def _asks(self) -> bool:
        """Whether everything under way asks for the device's messages."""
        return len(self.under_way) == 1 and len(self.packet) == _HEADER.size

    def _took(self, count: int, answer: Answer) -> Answer:
        self._sequence = self._sequence + count & 0xFFFF
        del self.under_way[:count]
        del self._plain[:count]
        return answer

    def _open(self, data: bytes) -> None:
        if self._kind is Kind.QUERY:
            if len(data) < 2:
                raise ProtocolError("the device does not say which packet it expects")
            self._sequence = int.from_bytes(data[:2], "big")
            self._kind = Kind.INIT
            self.packet = _HEADER.pack(Kind.INIT, 0, self._sequence) + _PAIR.pack(VERSION, PACKET_MAX)
            self.under_way = [self.packet]
            return
        if len(data) < _PAIR.size:
            raise ProtocolError("the device does not say which version it speaks")
        version, size = _PAIR.unpack_from(data)
        if version < VERSION or size < PACKET_MIN:
            raise ProtocolError(f"the device speaks version {version} in packets of {size} bytes")
        self._size = min(size, PACKET_MAX)
        self._sequence = self._sequence + 1 & 0xFFFF
        self._kind = Kind.FASTBOOT
        self.under_way.clear()
        self.is_open = True
