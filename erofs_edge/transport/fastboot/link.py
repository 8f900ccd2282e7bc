# SPDX-License-Identifier: Apache-2.0
"""Links to a fastboot device: tcp:HOST[:PORT] and udp:HOST[:PORT]. The only file of the client with sockets; USB is in
`usb.py`.

Every wait for a silent device has a deadline. A device that only has to acknowledge something gets SILENCE. While a
command is running, which may write or hash for minutes and often leaves the device deaf, the deadline is WORK plus the
time to take what was sent at a rate of LEAST. Only time spent listening counts: a program that was stopped has not been
waiting.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from socket import SO_RCVTIMEO, SOL_SOCKET
from typing import Protocol, Self, TypeVar

from erofs_edge.errors import DeviceError, DeviceRefusedError, ProtocolError, UsageError
from erofs_edge.transport.claim import Claim
from erofs_edge.transport.fastboot.client import Step, announced, download
from erofs_edge.transport.fastboot.udp import PORT, Answer, Host

CONNECT = 10.0  # seconds
WORK = 300.0  # seconds that a running command may take between two messages
LEAST = 256 << 10  # bytes per second: least rate at which a device writes a download, beyond the time for any command
REPEAT = 0.5  # seconds until an unanswered packet is repeated, doubled each time
REPEAT_MAX = 64.0
"""seconds: longer than a device stays silent, if it sends messages while it works. The network card of a busy device
holds few packets, and recovery from an overflow depends on its driver: U-Boot 2025.01 with virtio-net has 32 buffers
and receives nothing more once they have been full, because it does not tell the emulator that there is room again
(seen: 38 repeats in 20 s of work)"""
SILENCE = 120.0  # seconds of repeats after which an idle device is given up
GONE = 10.0  # seconds after which a device seen before counts as gone, if its port is closed
MESSAGE_MAX = 16 << 20  # bytes of one message from the device
HANDSHAKE = b"FB01"
SAMPLE = 64 << 10
"""bytes sent to measure a link; devices hold more"""
LOST = "check the cable and that the device is in fastboot mode, and run the same command again"
UNREACHED = (
    "check the address, that it is in fastboot mode and that no other host uses it, and run the same command again"
)
UNDER_WAY = 3
"""packets of a message in flight: the next one travels while the device handles one. Few, because a stalled device
receives each of them again and again, and some network cards hold four"""
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""the kernel's error when nobody answers for an address; a busy device does not answer for its own"""
TIMEVAL = struct.Struct("@ll")  # seconds and microseconds, as in SO_RCVTIMEO
PACKET = 2048  # bytes: more than any packet from a device
LISTEN_MIN = 1000  # microseconds; zero would mean forever
T = TypeVar("T")


class Link(Protocol):
    """Moves messages."""

    name: str

    def send(self, message: bytes | memoryview) -> None: ...

    def receive(self, left: int | None = None, patience: float = WORK) -> bytes:
        """The next message, or some of the `left` bytes of data still to come. Gives up after `patience` seconds
        without one."""
        ...

    def close(self) -> None: ...


class Device(AbstractContextManager["Device"]):
    """A device at the end of a link. Errors name it; all are DeviceErrors or errors of the protocol exchange."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sent = 0  # bytes of messages
        self._held = 0  # bytes of the last download, which the next command may work on

    def run(self, exchange: Generator[Step, bytes, T]) -> T:
        """Carry out one command, or several."""
        try:
            message = next(exchange)
            while True:
                if message is None or isinstance(message, int):
                    message = exchange.send(self.link.receive(message, WORK + self._held / LEAST))
                else:
                    self._held = announced(message) or self._held
                    self.link.send(message)
                    self.sent += len(message)
                    message = exchange.send(b"")
        except StopIteration as end:
            result: T = end.value
            return result
        except OSError as error:
            raise DeviceError(f"connection lost: {error.strerror or error}", where=self.link.name, hint=LOST) from error
        except DeviceRefusedError as error:
            error.where = error.where or self.link.name
            raise
        except DeviceError as error:
            error.where, error.hint = error.where or self.link.name, error.hint or LOST
            raise

    def rate(self) -> float:
        """Bytes per second, measured by downloading some to the device's memory, which changes nothing else."""
        started = time.perf_counter()
        self.run(download(SAMPLE, [bytes(SAMPLE)]))
        return SAMPLE / max(time.perf_counter() - started, 1e-9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


class TcpLink:
    """Messages with a length of eight bytes in front, after a handshake of four bytes each way."""

    claim: Claim | None = None

    def __init__(self, host: str, port: int) -> None:
        self.name = f"tcp:{host}:{port}"
        self._socket = socket.create_connection((host, port), CONNECT)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(HANDSHAKE)
            answer = self._exactly(4, time.monotonic() + CONNECT)
            if not answer.startswith(b"FB") or not answer[2:].isdigit() or int(answer[2:]) < 1:
                raise ProtocolError(f"not a fastboot device: it says {answer!r}", where=self.name)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: bytes | memoryview) -> None:
        self._socket.settimeout(WORK)
        try:
            self._socket.sendall(len(message).to_bytes(8, "big"))
            self._socket.sendall(message)
        except TimeoutError:
            raise DeviceError(f"the device has not taken {len(message)} bytes in {WORK:g} s", where=self.name) from None

    def receive(self, left: int | None = None, patience: float = WORK) -> bytes:
        deadline = time.monotonic() + patience
        try:
            size = int.from_bytes(self._exactly(8, deadline), "big")
            if size > MESSAGE_MAX:
                raise ProtocolError(f"a message of {size} bytes", where=self.name)
            return self._exactly(size, deadline)
        except TimeoutError:
            raise DeviceError(f"the device has not answered for {patience:g} s", where=self.name) from None

    def close(self) -> None:
        self._socket.close()
        if self.claim is not None:
            self.claim.release()

    def _exactly(self, count: int, deadline: float) -> bytes:
        """Raises TimeoutError unless all bytes have come by the deadline: bytes that trickle in are no sign of life. A
        program that was stopped past the deadline still takes what arrived meanwhile."""
        data = b""
        while len(data) < count:
            self._socket.settimeout(max(deadline - time.monotonic(), 0))
            try:
                more = self._socket.recv(count - len(data))
            except BlockingIOError:  # past the deadline, only what has already arrived is taken
                raise TimeoutError from None
            if not more:
                raise DeviceError("the device closed the connection", where=self.name)
            data += more
        return data


class UdpLink:
    """Packets, repeated until they are answered. Several packets of a message are in flight at once until one is lost;
    from then on it is one at a time."""

    claim: Claim | None = None

    def __init__(self, host: str, port: int) -> None:
        self.name = f"udp:{host}:{port}"
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._host = Host()
        self._most = UNDER_WAY
        self._refused: float | None = None  # time since which the port has been closed
        self._wait = REPEAT  # seconds until the packet is repeated
        self._listens = 0.0  # the receive timeout set in the kernel, in seconds
        try:
            self._socket.connect(address)
            while not self._host.is_open:
                self._post(self._host.packet)
                self._heard(CONNECT)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: bytes | memoryview) -> None:
        host, view, step = self._host, memoryview(message), self._host.payload_max
        self._wait, at = REPEAT, 0
        while at < len(view) or host.under_way:
            while at < len(view) and (at == 0 or len(host.under_way) < self._most):
                self._post(host.say(view[at : at + step], more=at + step < len(view), ahead=at > 0))
                at += step
            if self._answered(SILENCE).data:
                raise ProtocolError("the device speaks while it is spoken to", where=self.name)
            self._wait = REPEAT

    def receive(self, left: int | None = None, patience: float = WORK) -> bytes:
        """An empty answer means that the device is still working."""
        message, more = b"", True
        deadline = time.monotonic() + patience
        while more:
            self._post(self._host.say(b"", more=False), at_work=True)
            answer = self._answered(patience, at_work=True)
            message += answer.data
            more = answer.more or not message
            if len(message) > MESSAGE_MAX:
                raise ProtocolError("a message without end", where=self.name)
            if more and time.monotonic() > deadline:
                raise DeviceError(f"the device has not answered for {patience:g} s", where=self.name)
        return message

    def close(self) -> None:
        self._socket.close()
        if self.claim is not None:
            self.claim.release()

    def _answered(self, patience: float, *, at_work: bool = False) -> Answer:
        while True:
            answer = self._heard(patience, at_work=at_work)
            if answer is not None:
                return answer

    def _heard(self, patience: float, *, at_work: bool = False) -> Answer | None:
        """Listen until the device has acknowledged a packet, repeating what is in flight. Returns its answer; None for
        a step of the opening."""
        silent = 0.0
        while True:
            wait = min(self._wait, patience - silent)
            try:
                return self._once(wait, at_work=at_work)
            except TimeoutError:
                silent += wait
                self._wait = REPEAT if self._refused is not None else min(2 * self._wait, REPEAT_MAX)
            if silent >= patience:
                raise DeviceError("the device does not answer", where=self.name)
            if len(self._host.under_way) > 1:
                self._most = 1
            for packet in self._host.under_way:
                self._post(packet, at_work=at_work)

    def _once(self, wait: float, *, at_work: bool) -> Answer | None:
        """Listen for this many seconds. Raises TimeoutError."""
        packet, was_open = self._host.packet, self._host.is_open
        again = time.monotonic() + wait
        self._listen(wait)
        while True:
            try:
                heard = self._socket.recv(PACKET)
            except (BlockingIOError, TimeoutError):  # the first is how the kernel reports its timeout
                raise TimeoutError from None
            except OSError as error:
                self._nobody(error, at_work=at_work)
                again = min(again, time.monotonic() + REPEAT)
                time.sleep(min(wait, 0.1))  # an answer may still come
            else:
                self._refused = None
                answer = self._host.hear(heard)
                if answer is not None or self._host.packet is not packet or self._host.is_open is not was_open:
                    return answer
            if (left := again - time.monotonic()) <= 0:
                raise TimeoutError
            self._listen(left)

    def _post(self, packet: bytes, *, at_work: bool = False) -> None:
        try:
            self._socket.send(packet)
        except OSError as error:
            self._nobody(error, at_work=at_work)

    def _listen(self, seconds: float) -> None:
        """Set how long to wait for a packet. The kernel keeps the time, so that receiving takes one call instead of a
        poll and a read."""
        if seconds != self._listens:
            self._listens = seconds
            whole, rest = divmod(max(round(seconds * 1_000_000), LISTEN_MIN), 1_000_000)
            self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, TIMEVAL.pack(whole, rest))

    def _nobody(self, error: OSError, *, at_work: bool) -> None:
        """Raises DeviceError if a device seen before has been away for a while: unplugged, or no longer in fastboot
        mode. Raises OSError for any other error."""
        if error.errno in UNREACHABLE and self._host.is_open:
            if at_work:
                return
        elif error.errno != errno.ECONNREFUSED:
            raise error
        now = time.monotonic()
        self._refused = now if self._refused is None else self._refused
        if self._host.is_open and now - self._refused > GONE:
            raise DeviceError("the device has disappeared", where=self.name)


_HOST = re.compile(r"(?:\[([^][/?#@\s]+)\]|([^][:/?#@\s]+))(?::([0-9]{1,5}))?/?")
LINKS: dict[str, Callable[[str, int], TcpLink | UdpLink]] = {"tcp": TcpLink, "udp": UdpLink}


def open_device(address: str) -> Device:
    """Open tcp:HOST[:PORT] or udp:HOST[:PORT], as in fastboot's own -s option, or usb[:SERIAL]. A device has one
    conversation at a time, and over UDP a second host would end the first one's, so another program on this machine is
    refused.

    Raises UsageError, DeviceError, DeviceRefusedError, and ToolError if the library for USB is missing.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "usb":
        from erofs_edge.transport.fastboot.usb import open_usb

        return Device(open_usb(rest or None))
    named = _HOST.fullmatch(rest)
    host, port = (named[1] or named[2], named[3] or str(PORT)) if named else ("", "0")
    if scheme not in LINKS or not 0 < int(port) < 65536:
        hint = "usb[:SERIAL], tcp:HOST[:PORT] or udp:HOST[:PORT]; an IPv6 address in brackets, as in tcp:[::1]"
        raise UsageError(f"not a fastboot device: {address!r}", hint=hint)
    claim = Claim(f"fastboot {scheme}:{host}:{port}", address)
    try:
        link = LINKS[scheme](host, int(port))
    except BaseException as error:
        claim.release()
        if isinstance(error, OSError):
            raise DeviceError(f"cannot connect: {error.strerror or error}", where=address, hint=UNREACHED) from error
        if isinstance(error, DeviceError):
            error.hint = error.hint or UNREACHED
        raise
    link.claim = claim
    return Device(link)
