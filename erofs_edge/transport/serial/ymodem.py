# SPDX-License-Identifier: Apache-2.0
"""The sender's side of YMODEM-1K for U-Boot's `loady`, made fast and robust.

The receiver (U-Boot common/xyzModem.c) polls the line, answers each block with ACK, or with 'C' to request the expected
block again, and recognizes repeated blocks. So the sender need not wait for each answer: a few blocks are in flight,
and the line is never idle. Between blocks there are a few bytes with which no header begins. A lost byte is made up
from these, and the next block is found at once; without them, the receiver would take data for a header and then wait
for two seconds of silence.

Answers carry no number. Those lost or invented by noise are sorted out by `_settle`: it sends single blocks until one
is accepted, and the receiver then expects the block after it. The data is verified elsewhere, by a checksum of the
whole at the end.
"""

from __future__ import annotations

import binascii
import math
from collections import deque
from collections.abc import Generator

from erofs_edge.errors import DeviceError
from erofs_edge.transport.serial.line import BITS_PER_BYTE, Exchange, Io

SOH, STX, EOT, ACK, NAK, CAN = 0x01, 0x02, 0x04, 0x06, 0x15, 0x18
AGAIN = ord("C")
ANSWERS = (ACK, NAK, CAN, AGAIN)
BLOCK, SHORT = 1024, 128  # bytes of data per block
GAP = bytes(4)
"""between blocks; none of SOH, STX, EOT, CAN and Ctrl-C"""
NUDGE = bytes(8)
RETURN = 0.03
"""seconds that an answer may take, including USB, without the line going idle: it determines how many blocks are in
flight
"""
TRIES = 12  # per block; the receiver gives up after 20
IDLE = 60  # rounds without an accepted block, whatever is received
QUIET = 6.0
"""seconds after which a waiting receiver has sent something: twice its two seconds of silence, and its pauses"""
TAIL = 64  # bytes in which a prompt is looked for
CHATTER = 4096  # bytes of noise after which a receiver counts as silent
BEHIND = 3  # blocks before the first unanswered one that may have to be repeated
LATENCY = 0.25  # seconds for an answer to arrive, besides the time of its bytes


class TransferError(DeviceError):
    """A transfer ended early. `taken`: bytes from the start that the receiver is known to have."""

    def __init__(self, message: str, taken: int) -> None:
        super().__init__(message)
        self.taken = taken


def block(number: int, data: bytes) -> bytes:
    """A packet: type, number, its complement, data of 128 or 1024 bytes, CRC-16/XMODEM."""
    kind = SOH if len(data) == SHORT else STX
    number &= 0xFF
    return bytes([kind, number, 0xFF - number]) + data + binascii.crc_hqx(data, 0).to_bytes(2, "big")


def header(size: int) -> bytes:
    """Block 0: an empty name and the size in decimal."""
    return block(0, f"\0{size}".encode().ljust(SHORT, b"\0"))


def send(
    data: bytes, *, baud: int, window: int = 0, latency: float = LATENCY, size: int = BLOCK, gone: bytes = b""
) -> Exchange[int]:
    """Send `data` to a receiver that has just been started; return the bytes of all packets.

    window   blocks in flight; 1 waits for each answer, 0 uses what suits the rate
    latency  seconds after which a missing answer counts as lost
    size     bytes of data per block: BLOCK, or SHORT for a line that spoils many
    gone     what the device says once the receiver has left; b"" if that is not known

    Raises TransferError if the receiver gives up or falls silent.
    """
    return (yield from _Sender(data, baud, window, latency, size, gone).run())


class _Sender:
    def __init__(self, data: bytes, baud: int, window: int, latency: float, size: int, gone: bytes) -> None:
        self.data, self.latency, self.size, self.gone = data, latency, size, gone
        self.tail = b""  # the end of what was heard
        self.count = -(-len(data) // size)
        self.base = 0  # first block whose answer is not known
        self.pending: deque[int] = deque()  # blocks sent, in order, unanswered
        self.time = (size + 5 + len(GAP)) * BITS_PER_BYTE / baud  # seconds of a block on the line
        self.window = window or 2 + math.ceil(RETURN / self.time)
        self.cancels = 0
        self.sent = 0
        self.stray = False  # bytes were sent after a block that the receiver may still have to skip

    def run(self) -> Exchange[int]:
        yield from self._open()
        following = idle = reached = 0
        while self.base < self.count:
            idle, reached = (0 if self.base > reached else idle + 1), self.base
            if idle > IDLE + self.window:
                raise TransferError("the receiver says nothing of use", self._taken())
            if following < self.count and following - self.base < self.window:
                answers = self._heard((yield self._out(self._packet(following))))
                self.pending.append(following)
                following += 1
            else:
                answers = yield from self._ask(b"", self._patience())
                if not answers:
                    answers = yield from self._ask(NUDGE, self.latency + self.time)
                if not answers:
                    yield from self._settle([self.base + len(self.pending) - 1, self.base], silent=True)
                    following = self.base
                    continue
            if not self._take(answers):
                yield from self._drain()
                if self.base < self.count:
                    yield from self._settle([self.base])
                following = self.base
        yield from self._close()
        return self.sent

    def _taken(self) -> int:
        return max(0, self.base - BEHIND) * self.size

    def _packet(self, index: int) -> bytes:
        piece = self.data[index * self.size : (index + 1) * self.size]
        return block(index + 1, piece.ljust(self.size, b"\x1a")) + (GAP if index < self.count - 1 else b"")

    def _out(self, data: bytes, wait: float = 0.0) -> Io:
        self.sent += len(data)
        self.stray |= data == NUDGE
        return Io(data, wait)

    def _ask(self, data: bytes, wait: float) -> Exchange[bytes]:
        """Send, and listen until an answer or `wait` seconds of silence; return only bytes that answers are made of."""
        heard, answers = 0, b""
        while not answers and heard < CHATTER:
            said = self._heard((yield self._out(data, wait)))
            if not said:
                break
            data, heard = b"", heard + len(said)
            answers = bytes(byte for byte in said if byte in ANSWERS)
        return answers

    def _heard(self, said: bytes) -> bytes:
        """What was heard. Raises TransferError if it is the console's prompt: the receiver took noise for the end, or
        for a cancellation, and the console takes the data for commands."""
        self.tail = (self.tail + said)[-TAIL:]
        if self.gone and self.gone in self.tail:
            raise TransferError("the receiver has left", self._taken())
        return said

    def _patience(self) -> float:
        """Seconds to wait for the answers to everything in flight."""
        return (len(self.pending) + 1) * self.time + self.latency

    def _take(self, answers: bytes) -> bool:
        """Note answers to pending blocks; False at the first that is not ACK."""
        for answer in answers:
            self._watch(answer)
            if answer == ACK and self.pending:
                self.base = self.pending.popleft() + 1
            elif answer in (AGAIN, NAK):
                if self.pending:
                    self.pending.popleft()
                return False
        return True

    def _watch(self, answer: int) -> None:
        """Detect two cancels in a row: the receiver has left."""
        self.cancels = self.cancels + 1 if answer == CAN else 0
        if self.cancels >= 2:
            raise TransferError("the receiver cancelled the transfer", self._taken())

    def _drain(self) -> Generator[Io, bytes, None]:
        """Read the answers to what is still in flight: more complaints, or an ACK that reveals the complaint as
        noise.
        """
        while self.pending:
            answers = yield from self._ask(b"", self._patience())
            if not answers:
                break
            for answer in answers:
                self._watch(answer)
                if self.pending and answer != CAN:
                    index = self.pending.popleft()
                    self.base = index + 1 if answer == ACK else self.base
        self.pending.clear()

    def _settle(self, first: list[int], *, silent: bool = False) -> Generator[Io, bytes, None]:
        """Send single blocks until one is accepted; `base` is the block after it then.

        first   what to try first; then everything around it
        silent  the receiver has not complained: if the first is not answered either, wait until it does
        """
        self.pending.clear()
        around = range(max(0, self.base - BEHIND), min(self.count, self.base + self.window))
        order = [*first, *first, *sorted(around, key=lambda index: (index < self.base, abs(index - self.base)))]
        for turn in range(TRIES):
            index = min(order[turn % len(order)], self.count - 1)
            answers = yield from self._ask(self._packet(index), 2 * self.time + self.latency)
            if not answers:
                answers = yield from self._ask(NUDGE if not silent else b"", self.latency + self.time)
            if not answers:
                answers = yield from self._ask(b"", QUIET)
            for answer in answers:
                self._watch(answer)
            if ACK in answers:
                self.base = index + 1
                return
        raise TransferError("the receiver takes no block any more", self._taken())

    def _open(self) -> Generator[Io, bytes, None]:
        """Wait for the receiver's 'C' and send the header until it is accepted."""
        if not ((yield from self._ask(b"", QUIET)) or (yield from self._ask(b"", QUIET))):
            raise TransferError("the receiver does not start", 0)
        for attempt in range(TRIES):
            # after a bad header the receiver waits for silence, and then stays quiet itself
            pause = QUIET / 2 if attempt % 3 == 2 else self.time + self.latency
            answers = yield from self._ask(header(len(self.data)), pause)
            if ACK in answers:
                return
            for answer in answers:
                self._watch(answer)
        raise TransferError("the receiver takes no header", 0)

    def _close(self) -> Generator[Io, bytes, None]:
        """End the file, then the batch. Answers are not awaited: the receiver has all data and continues by itself.

        It only accepts the end if no other byte came after the last block.
        """
        self.gone = b""  # from here on a prompt is what has to come
        for _ in range(3):
            if self.stray:
                answers = yield from self._ask(self._packet(self.count - 1), self.time + self.latency)
                self.stray = ACK not in answers
            answers = yield from self._ask(bytes([EOT]), self.latency)
            if ACK in answers:
                break
            self.stray = True
            yield Io(b"", QUIET)
        if AGAIN not in answers:
            yield Io(b"", self.latency)
        yield from self._ask(block(0, bytes(SHORT)), self.latency)
