# SPDX-License-Identifier: Apache-2.0
"""Locks on open files: one process holds the lock until it closes the file or ends."""

from __future__ import annotations

import time

_FAR = 1 << 30  # a byte beyond the file, for systems where locks cover bytes and keep others from reading them
_PAUSE = 0.05  # seconds


def keep_nobody_out() -> bool:
    """Whether locks are advisory: only those who ask for a lock notice it. If not (Windows), an open file can be
    neither removed nor replaced, which also shows that it is in use."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


def lock(fd: int, *, wait: bool = True) -> None:
    """Lock a file. Raises BlockingIOError if another process holds the lock and `wait` is false, OSError if the file
    system does not support locks.

    The file position is undefined afterwards.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        _lock_byte(fd, wait)
    else:
        flock(fd, LOCK_EX | (0 if wait else LOCK_NB))


def _lock_byte(fd: int, wait: bool) -> None:
    """Lock as on Windows."""
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
