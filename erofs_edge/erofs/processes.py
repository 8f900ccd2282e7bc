# SPDX-License-Identifier: Apache-2.0
"""Distribute work of many small Python steps to forked processes, which share nothing but what was read before.

Threads would take turns at such work, and lose time doing so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

from erofs_edge.errors import ErofsEdgeError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Task = TypeVar("Task")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
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


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends for whatever reason, where supported."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def forked(shares: Sequence[Sequence[Task]], work: Callable[[Task], Result]) -> Iterator[Result]:
    """Yield the results of `work` for every task, in any order, with one process per share.

    Raises the first exception of `work`, and ErofsEdgeError if a process was killed. The processes end with the
    iterator.
    """
    from multiprocessing import get_context
    from multiprocessing.connection import Connection, wait

    context = get_context("fork")
    running: dict[Connection, object] = {}
    processes = []
    try:
        for share in shares:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(os.getpid(), there, share, work), daemon=True)
            process.start()
            processes.append(process)
            there.close()
            running[here] = process
        while running:
            for ready in wait(list(running)):
                pipe = cast(Connection, ready)
                try:
                    kind, value = pipe.recv()
                except EOFError:
                    raise ErofsEdgeError(
                        "a process of the extraction was killed",
                        hint="there may be too little memory: --jobs 1 uses one process",
                    ) from None
                if kind == "failed":
                    raise value
                if kind == "done":
                    del running[pipe]
                else:
                    yield value
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _child(parent: int, pipe: Connection, share: Sequence[Task], work: Callable[[Task], Result]) -> None:
    end_with_parent(parent)  # it may be killed; then nobody wants our results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends us
    with suppress(BrokenPipeError):
        try:
            for task in share:
                pipe.send(("result", work(task)))
        except Exception as error:
            pipe.send(("failed", error))
        else:
            pipe.send(("done", None))
