# SPDX-License-Identifier: Apache-2.0
"""A serial line in simulated time: each byte takes its ten bits, and faults happen where they are wanted.

`SerialLine` is a port for the host's side (`transport.serial.port.Port`), so the code that drives a real port drives
this one as well. An hour on the line passes in seconds, and no test depends on the speed of the machine it runs on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

BITS = 10
BUFFER = 4096  # bytes that a port accepts before a write blocks
FIFO = 32  # bytes that a UART holds while nothing reads it

Fault = Callable[[str, int, int], bytes]
"""fault("to device" or "to host", number of the byte, the byte): what comes out at the other end"""
Program = Generator[float | None, int | None, None]
"""a device: it yields how long it waits for a byte (None: forever) and is sent that byte, or None"""


class ResetError(Exception):
    """Raised by a device's program: it is reset, and its program starts again."""


class Device(Protocol):
    """What is at the other end of a line."""

    baud: int

    def boot(self, line: Line) -> Program:
        """The program; it sends with `line.emit` and spends time with `line.busy`."""
        ...


class Line(Protocol):
    """The device's view of its line."""

    def emit(self, data: bytes) -> None:
        """Send data."""
        ...

    def busy(self, seconds: float) -> None:
        """Be occupied with something else for a while."""
        ...


def no_fault(_way: str, _number: int, byte: int) -> bytes:
    """A line that delivers every byte unchanged."""
    return bytes([byte])


class SerialLine:
    """The host's end. `now` is the host's time, seconds; `delivered` counts bytes that reached the device."""

    def __init__(self, device: Device, baud: int, *, fault: Fault = no_fault, latency: float = 0.0) -> None:
        self.name = "line"
        self.now = 0.0
        self.baud = baud
        self.delivered = 0
        self._device = device
        self._fault = fault
        self._latency = latency
        self._count = {"to device": 0, "to host": 0}
        self._down: deque[tuple[float, int]] = deque()
        self._up: deque[tuple[float, int]] = deque()
        self._down_free = self._up_free = 0.0
        self._clock = 0.0  # the device's time
        self._was_busy = False
        self._start()

    def reset(self) -> None:
        """Reset the device, which loses what was on the way to it."""
        self._down.clear()
        self._start()

    def _start(self) -> None:
        self._program = self._device.boot(self)
        self._wait = next(self._program)

    # the host's side

    def write(self, data: bytes) -> None:
        """Takes as long as on the line if more than BUFFER bytes are waiting already."""
        step = BITS / self.baud
        if self._fault is no_fault and self.baud == self._device.baud:
            free = max(self._down_free, self.now)
            arrivals = (free + step * number + self._latency for number in range(1, len(data) + 1))
            self._down.extend(zip(arrivals, data, strict=True))
            self._down_free = free + step * len(data)
            data = b""
        for byte in data:
            self._down_free = max(self._down_free, self.now) + step
            arrived = self._fault("to device", self._count["to device"], byte)
            self._count["to device"] += 1
            if self.baud != self._device.baud:
                arrived = bytes(byte ^ 0xA5 for byte in arrived)
            self._down.extend((self._down_free + self._latency, byte) for byte in arrived)
        self.now = max(self.now, self._down_free - BUFFER * step)

    def read(self, wait: float) -> bytes:
        """What has arrived; waits up to `wait` seconds for its first byte."""
        deadline = self.now + wait
        while not self._up or self._up[0][0] > self.now:
            if self._up and self._up[0][0] <= deadline:
                self.now = max(self.now, self._up[0][0])
                break
            if not self._step(deadline):
                self.now = deadline
                break
        heard = bytearray()
        while self._up and self._up[0][0] <= self.now:
            heard.append(self._up.popleft()[1])
        return bytes(heard)

    def set_baud(self, baud: int) -> None:
        self.now = max(self.now, self._down_free)
        self.baud = baud

    def close(self) -> None:
        """Nothing to do."""

    # the device's side

    def emit(self, data: bytes) -> None:
        """The device sends data; it waits while its FIFO is full."""
        step = BITS / self._device.baud
        for byte in data:
            self._up_free = max(self._up_free, self._clock) + step
            arrived = self._fault("to host", self._count["to host"], byte)
            self._count["to host"] += 1
            if self.baud != self._device.baud:
                arrived = bytes(byte ^ 0xA5 for byte in arrived)
            self._up.extend((self._up_free + self._latency, byte) for byte in arrived)
        self._clock = max(self._clock, self._up_free - FIFO * step)

    def busy(self, seconds: float) -> None:
        """The device is occupied with something else; what its FIFO cannot hold is lost."""
        self._clock += seconds
        self._was_busy = True

    def _step(self, until: float) -> bool:
        """Give the device its next byte, or let its deadline expire. False if neither happens by `until`."""
        if self._was_busy:
            self._was_busy = False
            while len(self._down) > FIFO and self._down[FIFO][0] <= self._clock:
                del self._down[FIFO]
        limit = until if self._wait is None else min(until, self._clock + self._wait)
        if self._down and self._down[0][0] <= limit:
            arrival, byte = self._down.popleft()
            self._clock = max(self._clock, arrival)
            self.delivered += 1
            self._resume(byte)
        elif self._wait is not None and self._clock + self._wait <= until:
            self._clock += self._wait
            self._resume(None)
        else:
            return False
        return True

    def _resume(self, byte: int | None) -> None:
        try:
            self._wait = self._program.send(byte)
        except ResetError:
            self.reset()
        except StopIteration:
            self._wait = None


class QuickLine:
    """A line that takes no time and corrupts nothing, for tests of what is sent and not of when: a hundred times faster
    than `SerialLine`. A wait for a byte only times out once the other end has waited that long, too."""

    def __init__(self, device: Device) -> None:
        self.name = "line"
        self._in: deque[int] = deque()
        self._out = bytearray()
        self._waited = 0.0  # seconds that the device has waited for its next byte
        self._program = device.boot(self)
        self._wait = next(self._program)

    # the host's side

    def write(self, data: bytes) -> None:
        self._in.extend(data)

    def read(self, wait: float) -> bytes:
        """What the device has sent after receiving everything; if that is nothing, after `wait` seconds."""
        while self._in:
            self._resume(self._in.popleft())
        until = self._waited + wait
        while not self._out and self._wait is not None and self._wait <= until:
            until -= self._wait
            self._resume(None)
        self._waited = until
        heard = bytes(self._out)
        self._out.clear()
        return heard

    def set_baud(self, baud: int) -> None:
        """Nothing to do: there is no rate."""

    def close(self) -> None:
        """Nothing to do."""

    # the device's side

    def emit(self, data: bytes) -> None:
        """The device sends data."""
        self._out += data

    def busy(self, seconds: float) -> None:
        """Takes no time here."""

    def _resume(self, byte: int | None) -> None:
        self._waited = 0.0
        try:
            self._wait = self._program.send(byte)
        except StopIteration:
            self._wait = None
