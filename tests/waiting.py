# SPDX-License-Identifier: Apache-2.0
"""Other processes in tests: a port that nobody else gets, and waiting for what they do, however slow they are."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_KEPT: list[socket.socket] = []
WAIT = 120.0  # seconds; a machine that needs longer for anything here is out of order


def reserved_port() -> int:
    """A TCP port of 127.0.0.1 for a server that sets SO_REUSEADDR, as all here do. Until then nobody listens there.

    The socket stays bound and never listens: Linux lets such a server bind beside it, and gives the port to nobody
    who asks for any free one, or connects to somewhere, in whichever process (socket(7), ip(7)).
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _KEPT.append(keeper)
    port: int = keeper.getsockname()[1]
    return port


def listens(where: int | Path) -> bool:
    """Whether somebody accepts connections at a port of this machine, or at a socket's path (it exists before)."""
    with socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX) as probe:
        probe.settimeout(30)
        return probe.connect_ex(("127.0.0.1", where) if isinstance(where, int) else str(where)) == 0


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it comes true within two minutes."""
    deadline = time.monotonic() + WAIT
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


class Clock:
    """Stands for the module `time` where a limit is to be over only when the other process has come as far as meant."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Seconds, as time.monotonic, and those in `ahead`."""
        return time.monotonic() + self.ahead


def wait_for(process: subprocess.Popen[bytes], where: int | Path, log: Path | None = None) -> None:
    """Wait until `process` listens there; fails, with its log, where it ends before, or does not in two minutes."""
    assert eventually(lambda: process.poll() is not None or listens(where)), f"{process.args!r} does not listen"
    assert process.poll() is None, log.read_text() if log else f"{process.args!r} ended with {process.returncode}"
