# SPDX-License-Identifier: Apache-2.0
"""Ports: a pseudo terminal in place of a serial device, and a socket in place of an emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import struct
import tty
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from erofs_edge.errors import DeviceError, DeviceRefusedError, UsageError
from erofs_edge.transport.serial import port as port_module
from erofs_edge.transport.serial.line import Io
from erofs_edge.transport.serial.port import Counted, SerialPort, SocketPort, drive

PATIENCE = 60.0
"""seconds that a byte on this machine may take; none of these tests waits for them to pass"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The other end's descriptor, and the path of the port."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    yield master, os.ttyname(slave)
    os.close(slave)


def test_bytes_go_both_ways_over_a_port(terminal: tuple[int, str]) -> None:
    master, path = terminal
    port = Counted(SerialPort(path, 115200))
    everything = bytes(range(256))
    port.write(everything)
    heard = b""
    while len(heard) < 256:
        heard += os.read(master, 256)
    assert heard == everything
    os.write(master, everything)
    heard = b""
    while len(heard) < 256:
        heard += port.read(PATIENCE)
    assert heard == everything
    assert port.read(0) == b""
    assert port.moved == 512
    port.set_baud(921600)
    port.close()
    os.close(master)


def is_exclusive(path: str) -> bool:
    """TIOCGEXCL (include/uapi/asm-generic/ioctls.h); asking opens the port, which root may."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        return struct.unpack("i", fcntl.ioctl(fd, 0x80045440, bytes(4)))[0] == 1
    finally:
        os.close(fd)


def test_two_programs_do_not_share_a_port(terminal: tuple[int, str]) -> None:
    master, path = terminal
    port = SerialPort(path, 115200)
    with pytest.raises(DeviceRefusedError, match="another program is using it"):
        SerialPort(path, 115200)
    assert is_exclusive(path), "those that ask for no lock are refused by the kernel, root's excepted"
    port.close()
    assert not is_exclusive(path)
    SerialPort(path, 115200).close()
    os.close(master)


def test_a_program_that_had_the_port_before_is_refused(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for no lock, and would take some of what arrives. A pseudo terminal may be held open by its maker."""
    master, path = terminal
    monkeypatch.setattr(port_module, "user_of", lambda _path: "process 7 (screen)")
    SerialPort(path, 115200).close()
    monkeypatch.setattr(port_module, "TERMINALS", ())
    with pytest.raises(DeviceRefusedError, match="another program is using it: process 7"):
        SerialPort(path, 115200)
    assert not is_exclusive(path)
    os.close(master)


def test_rates_that_no_port_has(terminal: tuple[int, str]) -> None:
    master, path = terminal
    with pytest.raises(UsageError, match="does not support 99999999999 baud"):
        SerialPort(path, 99_999_999_999)
    port = SerialPort(path, 115200)
    with pytest.raises(DeviceError, match="does not support 99999999999 baud") as caught:
        port.set_baud(99_999_999_999)
    assert caught.value.hint == "leave baud= out, or take a lower rate"
    port.close()
    os.close(master)


def test_a_port_that_is_gone_is_one_error(terminal: tuple[int, str]) -> None:
    """pyserial passes on some errors of the terminal as they are."""
    master, path = terminal
    port = SerialPort(path, 115200)
    os.close(master)
    for call in (lambda: port.read(0.1), lambda: port.write(b"x"), lambda: port.set_baud(9600)):
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.where == path and "run the same command again" in (caught.value.hint or "")
        assert "multiple access" not in caught.value.message
    port.close()


def test_what_is_no_port_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open the port"):
        SerialPort(str(tmp_path / "none"), 115200)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a serial port"):
        SerialPort(str(tmp_path / "file"), 115200)
    with pytest.raises(DeviceError, match="cannot connect"):
        SocketPort(tmp_path / "none")


def test_a_line_that_is_cut_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        port = SocketPort(path)
        other, _ = server.accept()
        with pytest.raises(DeviceRefusedError, match="another program is using it"):
            SocketPort(path)
        other.sendall(b"=> ")
        assert port.read(PATIENCE) == b"=> "
        other.close()

        def talk() -> Generator[Io, bytes, None]:
            yield Io(b"", PATIENCE)

        with pytest.raises(DeviceError, match="closed the line") as error:
            drive(talk(), port)
        assert error.value.where == str(path)
        port.close()
        SocketPort(path).close()
