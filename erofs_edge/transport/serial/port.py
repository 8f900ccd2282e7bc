# SPDX-License-Identifier: Apache-2.0
"""Serial ports, and an emulator's socket in place of one: the only file of this transport that uses a device or a
socket."""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import socket
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from erofs_edge.errors import DeviceError
from erofs_edge.transport.claim import taken, user_of
from erofs_edge.transport.serial.line import Exchange, T

if TYPE_CHECKING:
    import serial

SEND_TIMEOUT = 60.0  # seconds after which a port that accepts no data is given up
PIECE = 64 << 10
_NEXT = {
    errno.ENOENT: "plug the adapter in; ls /dev/serial/by-id lists those that are there",
    errno.EACCES: "add yourself to the group that owns it (dialout) and log in again",
}


class Port(Protocol):
    """A line that carries bytes both ways. `name` is for messages. Methods raise DeviceError if it is lost."""

    name: str

    def write(self, data: bytes) -> None: ...

    def read(self, wait: float) -> bytes:
        """What has arrived, after at most `wait` seconds; b"" for nothing."""
        ...

    def set_baud(self, baud: int) -> None: ...

    def close(self) -> None: ...


def drive(exchange: Exchange[T], port: Port) -> T:
    """Carry out a conversation on a port. Raises what the conversation raises, and DeviceError if the port is lost."""
    try:
        io = next(exchange)
        while True:
            if io.baud is not None:
                port.set_baud(io.baud)
            if io.data:
                port.write(io.data)
            io = exchange.send(port.read(io.wait))
    except StopIteration as end:
        result: T = end.value
        return result
    except DeviceError as error:
        error.where = error.where or port.name
        raise


class Counted:
    """A port that counts the bytes in both directions: `moved`."""

    def __init__(self, port: Port) -> None:
        self.name = port.name
        self.moved = 0
        self._port = port

    def write(self, data: bytes) -> None:
        self.moved += len(data)
        self._port.write(data)

    def read(self, wait: float) -> bytes:
        data = self._port.read(wait)
        self.moved += len(data)
        return data

    def set_baud(self, baud: int) -> None:
        self._port.set_baud(baud)

    def close(self) -> None:
        self._port.close()


class SerialPort:
    """A serial device: eight bits, no parity, no flow control. Opened exclusively: a second program is refused by a
    lock if it asks for one as this does, and otherwise by the kernel unless it runs as root (TIOCEXCL)."""

    def __init__(self, path: str, baud: int) -> None:
        import serial

        self.name = path
        try:
            self._port: serial.Serial = serial.Serial(
                path, baud, timeout=0, write_timeout=SEND_TIMEOUT, exclusive=True, rtscts=False, xonxoff=False
            )
        except serial.SerialException as error:
            if "exclusively lock" in str(error) or error.errno == errno.EBUSY:
                raise taken(path, user_of(Path(path))) from error
            said = os.strerror(error.errno) if error.errno else str(error)
            raise DeviceError(f"cannot open the port: {said}", where=path, hint=_NEXT.get(error.errno or 0)) from error
        self._exclusive(termios.TIOCEXCL)

    def write(self, data: bytes) -> None:
        import serial

        try:
            self._port.write(data)
        except serial.SerialException as error:
            raise DeviceError(f"cannot write to the port: {error}", where=self.name) from error

    def read(self, wait: float) -> bytes:
        import serial

        try:
            self._port.timeout = wait
            data: bytes = self._port.read(1) if wait else b""
            self._port.timeout = 0
            return data + self._port.read(PIECE)
        except serial.SerialException as error:
            raise DeviceError(f"the port is gone: {error}", where=self.name) from error

    def set_baud(self, baud: int) -> None:
        import serial

        try:
            self._port.flush()
            self._port.baudrate = baud
        except (serial.SerialException, ValueError) as error:
            raise DeviceError(f"the port does not support {baud} baud: {error}", where=self.name) from error

    def close(self) -> None:
        self._exclusive(termios.TIOCNXCL)  # otherwise it stays in effect as long as any program has the device open
        self._port.close()

    def _exclusive(self, how: int) -> None:
        with suppress(OSError):  # not a terminal on Linux, or gone
            fcntl.ioctl(self._port.fileno(), how)


class SocketPort:
    """A serial line that an emulator offers as a Unix socket; it has no real rate."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(self.name)
        except OSError as error:
            self._socket.close()
            raise DeviceError(f"cannot connect: {error.strerror}", where=self.name) from error
        self._socket.settimeout(SEND_TIMEOUT)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise DeviceError(f"the line is gone: {error.strerror or error}", where=self.name) from error

    def read(self, wait: float) -> bytes:
        if not self._selector.select(wait):
            return b""
        try:
            data = self._socket.recv(PIECE)
        except OSError as error:
            raise DeviceError(f"the line is gone: {error.strerror or error}", where=self.name) from error
        if not data:
            raise DeviceError("the other end closed the line", where=self.name)
        return data

    def set_baud(self, baud: int) -> None:
        """Nothing to do: there is no rate."""

    def close(self) -> None:
        self._selector.close()
        self._socket.close()
