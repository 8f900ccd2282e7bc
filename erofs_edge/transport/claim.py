# SPDX-License-Identifier: Apache-2.0
"""One program of this machine at a time where the protocol has no word for it, and who has a file or device open."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.errors import DeviceRefusedError

if TYPE_CHECKING:
    import socket

PROC = Path("/proc")
TAIL = 80  # bytes of a name that are told apart beside its checksum: an address has 107 at most
# include/uapi/asm-generic/fcntl.h: type and whence, start, length (0: all of it), pid, for 64 bits
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7), SO_PEERCRED


class Claim:
    """A name that only one program of this machine has: an address in the kernel's abstract name space (unix(7)), which
    ends with the program however it ends."""

    def __init__(self, name: str, where: str) -> None:
        """Raises DeviceRefusedError, with the program that has it, for a name that is taken."""
        import socket  # takes milliseconds to load: not for who locks a file

        raw = name.encode()
        place = b"\0erofs-edge %08x " % zlib.crc32(raw) + raw[-TAIL:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(place)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise taken(where, _owner(place)) from error

    def release(self) -> None:
        """Others may have it."""
        self._socket.close()


def taken(where: str, who: str = "") -> DeviceRefusedError:
    """What is told about something that another has; `who`: as far as is known."""
    return DeviceRefusedError(
        "another program is using it" + (f": {who}" if who else ""),
        where=where,
        hint="wait for it to finish, or stop it",
    )


def lock(fd: int, path: Path) -> None:
    """Be the only one that writes an open file, until it is closed, among those that ask: we do, and QEMU. Raises
    DeviceRefusedError with another program that has it; a file system without locks refuses nothing."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise taken(str(path), user_of(path)) from error


def user_of(path: Path) -> str:
    """A program that has a file or device open, as 'process 12 (name)'; '' where none is to be seen: those of other
    users are not, and this one does not count."""
    try:
        wanted = path.stat()
    except OSError:
        return ""
    for process in sorted((p for p in PROC.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name)):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            for name in os.listdir(process / "fd"):
                with suppress(OSError):
                    found = (process / "fd" / name).stat()
                    device = found.st_rdev and found.st_rdev == wanted.st_rdev
                    if device or (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return program(int(process.name))
    return ""


def program(pid: int) -> str:
    """'process 12 (name)'."""
    try:
        name = (PROC / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        name = ""
    return f"process {pid} ({name})" if name else f"process {pid}"


def process_of(connection: socket.socket) -> int:
    """The process at the other end of a connection over a Unix socket; 0 for one that cannot be named here."""
    import socket

    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid


def _owner(place: bytes) -> str:
    """Who listens there."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
            asking.setblocking(False)
            asking.connect(place)
            pid = process_of(asking)
    except OSError:
        return ""
    return program(pid) if pid else ""
