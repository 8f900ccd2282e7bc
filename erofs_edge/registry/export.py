# SPDX-License-Identifier: Apache-2.0
"""Files of a registry as a server's exports, fetched as they are read."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.registry.artifact import BLOCK
from erofs_edge.registry.lazy import LazyFile, Say
from erofs_edge.registry.pull import Found
from erofs_edge.registry.remote import Remote
from erofs_edge.serve.export import EXTENTS_MAX, Activity
from erofs_edge.sources.cache import Cache
from erofs_edge.transport.nbd import wire
from erofs_edge.transport.nbd.server import Offer

SUFFIX = ".img"


class RegistryExport:
    """A lazy file, read-only. Its methods raise OSError, after reporting the reason to `say`."""

    direct = False

    def __init__(self, file: LazyFile, where: str, *, say: Say = lambda _: None) -> None:
        self.file = file
        self.path = Path(where)
        self.offer = Offer(file.size, read_only=True)
        self.activity = Activity(file.size)
        self._say = say

    def send(self, to: socket.socket, header: bytes, offset: int, length: int) -> None:
        """The header, then the bytes, if they can be fetched."""
        data = self.read(offset, length)
        to.sendall(header + data)

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self.file.read(offset, length)
        except ErofsEdgeError as error:
            self._say(str(error))
            raise OSError(errno.EIO, error.message) from error

    def write(self, offset: int, data: bytes | bytearray) -> None:
        raise OSError(errno.EPERM, "what is in a registry is read-only")

    def zero(self, offset: int, length: int) -> None:
        raise OSError(errno.EPERM, "what is in a registry is read-only")

    def flush(self) -> None:
        """Nothing to do: nothing was written."""

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, flags of base:allocation), from the table of hashes."""
        found: list[tuple[int, int]] = []
        at, end = offset, offset + length
        while at < end and len(found) < EXTENTS_MAX:
            stop = min(end, (at // BLOCK + 1) * BLOCK)
            flags = wire.STATE_HOLE | wire.STATE_ZERO if self.file.is_hole(at // BLOCK) else 0
            if found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + stop - at, flags)
            else:
                found.append((stop - at, flags))
            at = stop
        return found

    def close(self) -> None:
        """Make reads in progress fail."""
        self.file.close()


def exports_of(found: Found, remote: Remote, cache: Cache, *, say: Say = lambda _: None) -> dict[str, RegistryExport]:
    """The files of an artifact that can be read in parts: X.img as X; an only file, under ''.

    Raises SourceError if there is none, and what LazyFile raises.
    """
    files = [file for file in found.value.files if file.blocks] or list(found.value.files[:1])
    made = {}
    for file in files:
        name = "" if len(files) == 1 else file.name.removesuffix(SUFFIX)
        made[name] = RegistryExport(LazyFile(file, remote, cache, say=say), f"{remote.reference}/{file.name}", say=say)
    return made
