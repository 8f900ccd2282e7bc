# SPDX-License-Identifier: Apache-2.0
"""Forked processes: where they may be, and how they tell what they have made, and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def may_fork() -> bool:
    """Whether processes can be forked from here safely: on Linux, from the only thread."""
    return sys.platform == "linux" and threading.active_count() == 1


@contextmanager
def ending_here() -> Iterator[None]:
    """In a forked process, which ends with the block, whatever happens in it: nothing of its parent's is put in order.

    What it has not told then, its parent does.
    """
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent too, which ends us
        yield
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def tell(pipe: int, data: bytes | bytearray | memoryview) -> None:
    """All of it into a pipe. Raises BrokenPipeError where nobody reads it any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]
