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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from erofs_edge.errors import DeviceError, DeviceRefusedError, UsageError, VerificationError
from erofs_edge.transport.claim import Claim, taken, user_of
from erofs_edge.transport.serial.line import Exchange, T

if TYPE_CHECKING:
    import serial

SEND_TIMEOUT = 60.0  # seconds after which a port that accepts no data is given up
PIECE = 64 << 10
PLUG_IN = "plug the adapter in again, and run the same command again"
RESTART = "start the emulator again, and run the same command again"
TERMINALS = range(136, 144)
"""major numbers of pseudo terminals, whose other end may hold this one open"""
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
    except (DeviceError, DeviceRefusedError, VerificationError) as error:
        if not (error.where or "").startswith(port.name):
            error.where = f"{port.name}: {error.where}" if error.where else port.name
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
        except (ValueError, OverflowError) as error:
            raise UsageError(
                f"the port does not support {baud} baud", where=path, hint="console=115200 is usual"
            ) from error
        except serial.SerialException as error:
            if "exclusively lock" in str(error) or error.errno == errno.EBUSY:
                raise taken(path, user_of(Path(path))) from error
            if error.errno is None and f"({errno.ENOTTY}," in str(error):
                raise UsageError("not a serial port", where=path, hint=_NEXT[errno.ENOENT]) from error
            said = os.strerror(error.errno) if error.errno else str(error)
            raise DeviceError(f"cannot open the port: {said}", where=path, hint=_NEXT.get(error.errno or 0)) from error
        self._exclusive(termios.TIOCEXCL)
        if other := self._other_user():
            self.close()
            raise taken(path, other)

    def write(self, data: bytes) -> None:
        with self._told("cannot write to the port"):
            self._port.write(data)

    def read(self, wait: float) -> bytes:
        with self._told("the port is gone"):
            self._port.timeout = wait
            data: bytes = self._port.read(1) if wait else b""
            self._port.timeout = 0
            return data + self._port.read(PIECE)

    def set_baud(self, baud: int) -> None:
        with self._told("the port is gone"):
            self._port.flush()
            try:
                self._port.baudrate = baud
            except (ValueError, OverflowError) as error:
                raise DeviceError(
                    f"the port does not support {baud} baud",
                    where=self.name,
                    hint="leave baud= out, or take a lower rate",
                ) from error

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        import serial

        try:
            yield
        except (serial.SerialException, termios.error, OSError) as error:  # pyserial does not translate all of them
            raise DeviceError(f"{what}: {_reason(error)}", where=self.name, hint=PLUG_IN) from error

    def _other_user(self) -> str:
        """A program that had the port open before and asks for no lock: it would take some of what arrives."""
        try:
            if os.major(os.fstat(self._port.fileno()).st_rdev) in TERMINALS:
                return ""
        except OSError:
            return ""
        return user_of(Path(self.name))

    def close(self) -> None:
        self._exclusive(termios.TIOCNXCL)  # otherwise it stays in effect as long as any program has the device open
        self._port.close()

    def _exclusive(self, how: int) -> None:
        with suppress(OSError):  # not a terminal on Linux, or gone
            fcntl.ioctl(self._port.fileno(), how)


def _reason(error: Exception) -> str:
    """What the kernel says, without pyserial's guesses around it."""
    for cause in (error, error.__context__):
        number = cause.args[0] if cause is not None and cause.args else None
        if isinstance(number, int):
            return os.strerror(number)
    return "nothing can be read" if "no data" in str(error) else str(error)


class SocketPort:
    """A serial line that an emulator offers as a Unix socket; it has no real rate."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        # an emulator lets a second program connect, and leaves it waiting
        self._claim = Claim(f"serial {path.absolute()}", self.name)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(self.name)
        except OSError as error:
            self._socket.close()
            self._claim.release()
            raise DeviceError(
                f"cannot connect: {error.strerror}", where=self.name, hint="is the emulator running?"
            ) from error
        self._socket.settimeout(SEND_TIMEOUT)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise DeviceError(f"the line is gone: {error.strerror or error}", where=self.name, hint=RESTART) from error

    def read(self, wait: float) -> bytes:
        if not self._selector.select(wait):
            return b""
        try:
            data = self._socket.recv(PIECE)
        except OSError as error:
            raise DeviceError(f"the line is gone: {error.strerror or error}", where=self.name, hint=RESTART) from error
        if not data:
            raise DeviceError("the other end closed the line", where=self.name, hint=RESTART)
        return data

    def set_baud(self, baud: int) -> None:
        """Nothing to do: there is no rate."""

    def close(self) -> None:
        self._selector.close()
        self._socket.close()
        self._claim.release()
