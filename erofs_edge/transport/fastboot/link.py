# SPDX-License-Identifier: Apache-2.0
"""Wires to a fastboot device: tcp:HOST[:PORT] and udp:HOST[:PORT]. The only file of the client that knows sockets;
USB is in `usb.py`.

A device that is silent is given up after a deadline, everywhere. Erasing and flashing may take long: while a command is
at work the deadline is WORK.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeVar

from erofs_edge.errors import DeviceError, ProtocolError, UsageError
from erofs_edge.transport.fastboot.client import Step, download
from erofs_edge.transport.fastboot.udp import PORT, Answer, Host

CONNECT = 10.0  # seconds
WORK = 300.0  # seconds that a command may take between two messages
REPEAT = 0.5  # seconds after which an unanswered packet is sent again
SILENCE = 60.0  # seconds of repeats after which a device is given up
GONE = 10.0  # seconds after which a device that was there counts as gone, where nobody listens at its port any more
MESSAGE_MAX = 16 << 20  # bytes of one message from the device
HANDSHAKE = b"FB01"
SAMPLE = 64 << 10
"""bytes by which a link is measured; devices hold more"""
T = TypeVar("T")


class Link(Protocol):
    """Moves messages."""

    name: str

    def send(self, message: bytes | memoryview) -> None: ...

    def receive(self, left: int | None = None) -> bytes:
        """The next message, or some of the `left` bytes of data that are still to come."""
        ...

    def close(self) -> None: ...


class Device(AbstractContextManager["Device"]):
    """A device at the end of a link. Errors name it; all of them are DeviceErrors or what the exchange raises."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sent = 0  # bytes of messages

    def run(self, exchange: Generator[Step, bytes, T]) -> T:
        """Carry out one command, or several."""
        try:
            message = next(exchange)
            while True:
                if message is None or isinstance(message, int):
                    message = exchange.send(self.link.receive(message))
                else:
                    self.link.send(message)
                    self.sent += len(message)
                    message = exchange.send(b"")
        except StopIteration as end:
            result: T = end.value
            return result
        except OSError as error:
            raise DeviceError(f"connection lost: {error.strerror or error}", where=self.link.name) from error

    def rate(self) -> float:
        """Bytes a second, by putting some into the device's memory, which changes nothing else."""
        started = time.perf_counter()
        self.run(download(SAMPLE, [bytes(SAMPLE)]))
        return SAMPLE / max(time.perf_counter() - started, 1e-9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


class TcpLink:
    """Messages of a length in eight bytes, after a handshake of four bytes each way."""

    def __init__(self, host: str, port: int) -> None:
        self.name = f"tcp:{host}:{port}"
        self._socket = socket.create_connection((host, port), CONNECT)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(HANDSHAKE)
            answer = self._exactly(4)
            if not answer.startswith(b"FB") or not answer[2:].isdigit() or int(answer[2:]) < 1:
                raise ProtocolError(f"not a fastboot device: it says {answer!r}", where=self.name)
            self._socket.settimeout(WORK)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: bytes | memoryview) -> None:
        self._socket.sendall(len(message).to_bytes(8, "big"))
        self._socket.sendall(message)

    def receive(self, left: int | None = None) -> bytes:
        size = int.from_bytes(self._exactly(8), "big")
        if size > MESSAGE_MAX:
            raise ProtocolError(f"a message of {size} bytes", where=self.name)
        return self._exactly(size)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise DeviceError("the device closed the connection", where=self.name)
            data += more
        return data


class UdpLink:
    """One packet at a time, repeated until it is answered."""

    def __init__(self, host: str, port: int) -> None:
        self.name = f"udp:{host}:{port}"
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._host = Host()
        self._refused: float | None = None  # since when nobody listens
        try:
            self._socket.connect(address)
            deadline = time.monotonic() + CONNECT
            while not self._host.is_open:
                self._once(deadline)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: bytes | memoryview) -> None:
        view, step = memoryview(message), self._host.payload_max
        for at in range(0, len(view), step):
            self._host.say(view[at : at + step], more=at + step < len(view))
            if self._answered().data:
                raise ProtocolError("the device speaks while it is spoken to", where=self.name)

    def receive(self, left: int | None = None) -> bytes:
        """An empty answer says that the device is still at work."""
        message, more = b"", True
        deadline = time.monotonic() + WORK
        while more:
            self._host.say(b"", more=False)
            answer = self._answered()
            message += answer.data
            more = answer.more or not message
            if len(message) > MESSAGE_MAX:
                raise ProtocolError("a message without end", where=self.name)
            if time.monotonic() > deadline:
                raise DeviceError(f"the device has nothing to say for {WORK:g} s", where=self.name)
        return message

    def close(self) -> None:
        self._socket.close()

    def _answered(self) -> Answer:
        deadline = time.monotonic() + SILENCE
        while True:
            answer = self._once(deadline)
            if answer is not None:
                return answer

    def _once(self, deadline: float) -> Answer | None:
        """Send the packet; hear until it is answered or has to be sent again."""
        sent, was_open = self._host.packet, self._host.is_open
        try:
            self._socket.send(sent)
        except ConnectionRefusedError:
            self._nobody()
        again = time.monotonic() + REPEAT
        while (left := again - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                packet = self._socket.recv(65536)
            except TimeoutError:
                break
            except ConnectionRefusedError:
                self._nobody()
                time.sleep(min(left, 0.1))  # nobody listens yet; an answer may still come
                continue
            self._refused = None
            answer = self._host.hear(packet)
            if answer is not None or self._host.packet is not sent or self._host.is_open is not was_open:
                return answer
        if time.monotonic() > deadline:
            raise DeviceError("the device does not answer", where=self.name)
        return None

    def _nobody(self) -> None:
        """Raises DeviceError where a device that was there has not been for a while: unplugged, or out of fastboot."""
        now = time.monotonic()
        self._refused = now if self._refused is None else self._refused
        if self._host.is_open and now - self._refused > GONE:
            raise DeviceError("the device is gone", where=self.name)


LINKS: dict[str, Callable[[str, int], Link]] = {"tcp": TcpLink, "udp": UdpLink}


def open_device(address: str) -> Device:
    """tcp:HOST[:PORT] or udp:HOST[:PORT], as fastboot's own -s takes them, or usb[:SERIAL].

    Raises UsageError, DeviceError, DeviceRefusedError, ToolError where USB lacks its library.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "usb":
        from erofs_edge.transport.fastboot.usb import open_usb

        return Device(open_usb(rest or None))
    host, found, port = rest.rpartition(":")
    if not found:
        host, port = rest, str(PORT)
    if scheme not in LINKS or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"not a fastboot device: {address!r}", hint="usb[:SERIAL], tcp:HOST[:PORT] or udp:HOST[:PORT]")
    try:
        return Device(LINKS[scheme](host, int(port)))
    except OSError as error:
        raise DeviceError(f"cannot connect: {error.strerror or error}", where=address) from error
