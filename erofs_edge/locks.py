# SPDX-License-Identifier: Apache-2.0
"""Locks on open files: one of all processes has it, until it closes the file or ends."""

from __future__ import annotations

import time

_FAR = 1 << 30  # a byte that is not in the file, where locks are on bytes and keep others from reading them
_PAUSE = 0.05  # seconds


def keep_nobody_out() -> bool:
    """Whether only those who ask for a lock know of it. Where not (Windows), a file that is open can be neither removed
    nor replaced, which tells as well that somebody has it."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


def lock(fd: int, *, wait: bool = True) -> None:
    """Raises BlockingIOError where another one has it and `wait` is false, OSError where the file system has no locks.

    The position of the file is anywhere afterwards.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        _lock_byte(fd, wait)
    else:
        flock(fd, LOCK_EX | (0 if wait else LOCK_NB))


def _lock_byte(fd: int, wait: bool) -> None:
    """As Windows has it."""
    import os
    from importlib import import_module

    system = import_module("msvcrt")
    while True:
        os.lseek(fd, _FAR, os.SEEK_SET)
        try:
            system.locking(fd, system.LK_NBLCK, 1)
        except OSError as error:
            if not wait:
                raise BlockingIOError(error.errno, error.strerror) from error
            time.sleep(_PAUSE)
        else:
            return
