# SPDX-License-Identifier: Apache-2.0
"""Forked processes: when forking is safe, how a child reports, and how it ends.

They are for work of many small Python steps: threads take turns at it, and lose time doing so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NO_SUCH_CALL = (OSError, AttributeError, TypeError)  # the last if there is no C library (Windows)


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


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends for whatever reason, where supported."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
