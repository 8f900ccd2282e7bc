# SPDX-License-Identifier: Apache-2.0
"""Forked processes: when forking is safe, how a child returns its results, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def may_fork() -> bool:
    """Whether processes can be forked safely from here: only on Linux, and only from the sole thread."""
    return sys.platform == "linux" and threading.active_count() == 1


@contextmanager
def ending_here() -> Iterator[None]:
    """For use in a forked process, which is killed at the end of the block whatever happens, so none of the parent's
    cleanup runs in it.

    Anything it has not reported by then has to be done by the parent.
    """
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends us
        yield
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def tell(pipe: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` to a pipe. Raises BrokenPipeError if nobody reads it any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]
