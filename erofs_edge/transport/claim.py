# SPDX-License-Identifier: Apache-2.0
"""Let one program of this machine use something at a time where the protocol has no word for that, and find out who has
a file or device open.
"""

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
TAIL = 80  # bytes of a name kept beside its checksum: an address has 107 at most
# include/uapi/asm-generic/fcntl.h: type and whence, start, length (0: all of it), pid, for 64 bits
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_WRITTEN = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
"""the byte that QEMU locks while it may write to a disk: block/file-posix.c, RAW_LOCK_PERM_BASE and BLK_PERM_WRITE"""
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: unix(7), SO_PEERCRED


class Claim:
    """A name that only one program of this machine can hold: an address in the kernel's abstract name space (unix(7)),
    which is released when the program ends, however it ends."""

    def __init__(self, name: str, where: str) -> None:
        """Raises DeviceRefusedError, naming the program that holds it, if the name is taken."""
        import socket  # imported late: it takes milliseconds to load, and locking a file does not need it

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
        """Let others have the name."""
        self._socket.close()


def taken(where: str, who: str = "") -> DeviceRefusedError:
    """The error for something that another program has; `who`: as far as it is known."""
    return DeviceRefusedError(
        "another program is using it" + (f": {who}" if who else ""),
        where=where,
        hint="wait for it to finish, or stop it",
    )


def lock(fd: int, path: Path) -> None:
    """Become the only writer of an open file, until it is closed, among programs that use locks: this one and QEMU do.
    Raises DeviceRefusedError, naming the program, if another has the lock; a file system without locks refuses nothing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise taken(str(path), user_of(path)) from error


def refuse_written(path: Path) -> None:
    """Raises DeviceRefusedError, naming the program, for a file that a QEMU machine or another run of this program may
    be writing. Any number of programs may read it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # the next one to open it gives the reason
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WRITTEN)
    except OSError:
        return  # a file system without locks
    finally:
        os.close(fd)
    if struct.unpack_from("h", found)[0] != fcntl.F_UNLCK:
        raise taken(str(path), user_of(path))


def user_of(path: Path) -> str:
    """A program that has a file or device open, as 'process 12 (name)'; '' if none can be seen. Processes of other
    users cannot be seen, and this process does not count."""
    try:
        wanted = path.stat()
    except OSError:
        return ""
    for process in sorted((p for p in PROC.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name)):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            for name in os.listdir(process / "fd"):
                with suppress(OSError):
                    found = (process / "fd" / name).stat()
                    device = found.st_rdev and found.st_rdev == wanted.st_rdev
                    if device or (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return program(int(process.name))
    return ""


def program(pid: int) -> str:
    """'process 12 (name)'. A program started by the dynamic loader, such as QEMU in our private prefix, has the
    loader's name; its own one is in its arguments."""
    try:
        name = (PROC / str(pid) / "comm").read_text("utf-8", "replace").strip()
        words = (PROC / str(pid) / "cmdline").read_text("utf-8", "replace").split("\0")
    except OSError:
        name, words = "", []
    if name.startswith("ld-") and "--argv0" in words[:-1]:
        name = words[words.index("--argv0") + 1]
    return f"process {pid} ({name})" if name else f"process {pid}"


def process_of(connection: socket.socket) -> int:
    """The process at the other end of a Unix socket connection; 0 if it cannot be identified."""
    import socket

    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid


def _owner(place: bytes) -> str:
    """Who listens at the address."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
            asking.setblocking(False)
            asking.connect(place)
            pid = process_of(asking)
    except OSError:
        return ""
    return program(pid) if pid else ""
