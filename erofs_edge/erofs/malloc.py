# SPDX-License-Identifier: Apache-2.0
"""The memory of a process: when glibc returns what is freed to the system."""

from __future__ import annotations

from contextlib import suppress

MALLOC_KEEPS = ((-3, 32 << 20), (-1, 128 << 20))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h, in bytes"""
LARGE = 4 << 20  # bytes
_NO_SUCH_CALL = (OSError, AttributeError, TypeError)  # the last if there is no C library (Windows)


def keep_memory() -> None:
    """With glibc, let this process reuse freed memory instead of returning it: every newly obtained page costs a fault.
    For processes that do the same thing over and over."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in MALLOC_KEEPS:
            mallopt(option, size)


def give_back_large_memory() -> None:
    """With glibc, let this process return large blocks of memory as soon as they are freed; otherwise glibc tends to
    keep them between what its threads still use."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).mallopt(MALLOC_KEEPS[0][0], LARGE)


def give_back_free_memory() -> None:
    """With glibc, return freed memory to the system, which otherwise is kept between memory in use. For the end of a
    step that took much more memory than the following ones need."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).malloc_trim(0)
