# SPDX-License-Identifier: Apache-2.0
"""A socket for the client: whole buffers in one call, files without copying, and timeouts.

The kernel keeps the time (socket(7), SO_RCVTIMEO and SO_SNDTIMEO), so one call moves a whole buffer. A socket with
Python's own timeout does not block: it moves only what the socket buffer holds, some 200 KiB, with a poll before each.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Protocol

from erofs_edge.errors import SourceError
from erofs_edge.transport.nbd.client import Said, Stretch

if TYPE_CHECKING:
    import ssl

KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""seconds, seconds and probes (tcp(7)): a machine that is gone is given up after half a minute, a busy one is not"""
_PROBES, _UNACKED = 3, slice(24, 28)
"""tcpi_probes and tcpi_unacked in Linux's struct tcp_info (include/uapi/linux/tcp.h): the fourth byte, and after eight
bytes and four 32-bit numbers"""
AT_ONCE = 512
"""buffers per sendmsg; Linux takes 1024"""
UNDER_WAY = 1 << 20
"""bytes that may be sent before a server on this machine has taken them, as far as the kernel allows (socket(7),
SO_SNDBUF): with the default 208 KiB the two sides take turns waiting. TCP sizes its own buffers."""


class SilenceError(TimeoutError):
    """Nothing was received or sent for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(errno.ETIMEDOUT, f"silent for {seconds:g} s")
        self.seconds = seconds


class Wire(Protocol):
    """What a connection runs over. Methods raise OSError, TimeoutError after silence."""

    def send(self, chunks: Sequence[Said], patience: float = 0.0) -> None:
        """Send all of these, in order. Raises SourceError if a file has become shorter. `patience`: seconds for which
        the peer may take nothing, if its machine is there; it can only extend the wire's timeout."""
        ...

    def receive(self, buffer: memoryview) -> int:
        """Receive at least one byte and return how many; 0 if the peer has closed."""
        ...

    def hears(self) -> bool:
        """Whether the machine of a silent peer is there: it has acknowledged everything sent, or reports that it cannot
        take more."""
        ...

    def encrypt(self, context: ssl.SSLContext, name: str) -> None:
        """Switch to TLS; `name` is the name required in the peer's certificate."""
        ...

    def close(self) -> None:
        """Close it for both directions."""
        ...


class Link:
    """A connected socket. `timeout`: seconds without a byte from or to the peer."""

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        self._socket, self._timeout = connected, timeout
        self._whole = 0
        self._patience = self._silent = 0.0  # seconds of silence tolerated, and so far, for what is being sent
        limit = pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        with suppress(OSError):  # systems with another struct timeval: use Python's timeout
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connected.settimeout(None)
            self._whole = socket.MSG_WAITALL

    def send(self, chunks: Sequence[Said], patience: float = 0.0) -> None:
        waiting: list[bytes | memoryview] = []
        self._patience, self._silent = patience, 0.0
        for chunk in chunks:
            if isinstance(chunk, Stretch):
                self._gathered(waiting, more=True)
                waiting = []
                self._file(chunk)
            else:
                waiting.append(chunk)
        self._gathered(waiting)

    def receive(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer, 0, self._whole)
        except BlockingIOError:
            raise TimeoutError from None

    def hears(self) -> bool:
        """What the kernel reports about segments in flight (tcp(7), TCP_INFO). Keepalive detects a machine that
        vanishes later."""
        if self._socket.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
            return True
        try:
            told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        except OSError:
            return False
        return told[_PROBES] < 2 and not int.from_bytes(told[_UNACKED], sys.byteorder)  # one probe may be in flight

    def encrypt(self, context: ssl.SSLContext, name: str) -> None:
        self._whole = 0
        self._socket.settimeout(self._timeout)
        self._socket = context.wrap_socket(self._socket, server_hostname=name)

    def close(self) -> None:
        self._socket.close()

    def _gathered(self, chunks: list[bytes | memoryview], *, more: bool = False) -> None:
        if not self._whole:
            for chunk in chunks:
                self._all(chunk)
            return
        flags = socket.MSG_MORE if more and hasattr(socket, "MSG_MORE") else 0
        for at in range(0, len(chunks), AT_ONCE):
            part = chunks[at : at + AT_ONCE]
            done = self._taken(partial(self._socket.sendmsg, part, (), flags))
            for chunk in part:  # the rest, if a signal or the timeout interrupted it
                if done < len(chunk):
                    self._all(memoryview(chunk)[done:], flags)
                done = max(0, done - len(chunk))

    def _all(self, data: bytes | memoryview, flags: int = 0) -> None:
        """Like a socket's `sendall`, which cannot continue after a timeout."""
        view = memoryview(data)
        while view:
            view = view[self._taken(partial(self._socket.send, view, flags)) :]

    def _taken(self, send: Callable[[], int]) -> int:
        """Call `send`; after a timeout call it again, as long as patience lasts and the other machine is there."""
        while True:
            try:
                done = send()
            except (BlockingIOError, TimeoutError):
                self._silent += self._timeout
                if self._silent >= self._patience or not self.hears():
                    raise SilenceError(self._silent) from None
            else:
                self._silent = 0.0
                return done

    def _file(self, stretch: Stretch) -> None:
        """The kernel moves pages from the file to the socket, where it can."""
        at, left = stretch.at, stretch.length
        while left and self._whole:
            try:
                done = self._taken(partial(os.sendfile, self._socket.fileno(), stretch.file, at, left))
            except SilenceError:
                raise
            except OSError:
                break  # such a file cannot be sent this way, or the connection is broken, which the fallback notices
            if not done:
                raise _shorter()
            at, left = at + done, left - done
        while left:
            try:
                data = os.pread(stretch.file, min(left, 1 << 20), at)
            except OSError as error:
                raise SourceError(f"cannot read what is to be sent: {error.strerror}") from error
            if not data:
                raise _shorter()
            self._all(data)
            at, left = at + len(data), left - len(data)


def dial(place: Path | tuple[str, int], timeout: float) -> Link:
    """Connect to a socket file, or to (host, port). Raises OSError."""
    if isinstance(place, Path):
        connection = socket.socket(socket.AF_UNIX)
        try:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < UNDER_WAY:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNDER_WAY)
            connection.settimeout(timeout)
            connection.connect(str(place))
        except BaseException:
            connection.close()
            raise
    else:
        connection = socket.create_connection(place, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return Link(connection, timeout)


def _shorter() -> SourceError:
    return SourceError("the file became shorter while it was being read")
