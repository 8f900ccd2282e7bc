# SPDX-License-Identifier: Apache-2.0
"""Which host writes an export: the first that did, as long as it has a connection to it. All others only read."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path

from erofs_edge.transport.claim import process_of


class Writers:
    """The writers of exports; safe for many threads. An export is identified by its file, a host by its address, and a
    program of this machine behind a socket file by its process: several connections of one host count together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: Counter[tuple[Path, str]] = Counter()  # number of connections, by export and host
        self._holders: dict[Path, str] = {}  # export → the host that writes it

    def other(self, export: Path, host: str) -> str:
        """The other host that writes the export, '' if it is this one, or none."""
        holder = self._holders.get(export, host)
        return "" if holder == host else holder

    def enter(self, export: Path, host: str) -> None:
        """A connection to an export begins."""
        with self._lock:
            self._there[export, host] += 1

    def writes(self, export: Path, host: str) -> str:
        """The host wants to write; returns the other host that already does, if any."""
        if self._holders.get(export) != host:
            with self._lock:
                self._holders.setdefault(export, host)
        return self.other(export, host)

    def leave(self, export: Path, host: str) -> None:
        """A connection has ended; after its last one the host no longer counts as the writer."""
        with self._lock:
            self._there[export, host] -= 1
            if self._there[export, host] <= 0:
                del self._there[export, host]
                if self._holders.get(export) == host:
                    del self._holders[export]


def host_of(client: socket.socket) -> str:
    """The name of the other end of a connection. Raises OSError if it is gone."""
    if client.family == socket.AF_UNIX:
        return f"process {process_of(client)}"
    return str(client.getpeername()[0])
