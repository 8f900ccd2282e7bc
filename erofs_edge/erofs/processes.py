# SPDX-License-Identifier: Apache-2.0
"""Work of many small Python steps on several processors: forked processes, which share nothing but what was read.

Threads take turns at such work and lose time doing so.
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
_NO_SUCH_CALL = (OSError, AttributeError, TypeError)  # in the C library; the last where there is none (Windows)


def keep_memory() -> None:
    """Have this process use freed memory again instead of giving it back, where its C library is glibc: every page that
    it gets anew costs a fault. For processes that do the same over and over."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in MALLOC_KEEPS:
            mallopt(option, size)


def give_back_large_memory() -> None:
    """Have this process give back what is large as soon as it is freed, where its C library is glibc, which comes to
    keep such memory between what its threads still use."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).mallopt(MALLOC_KEEPS[0][0], LARGE)


def give_back_free_memory() -> None:
    """Have this process give back what it freed, where its C library is glibc, which keeps that between what is in use:
    for the end of a step that took much more memory than what follows needs."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).malloc_trim(0)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends, however that happens, where it can."""
    import ctypes

    with suppress(*_NO_SUCH_CALL):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def forked(shares: Sequence[Sequence[Task]], work: Callable[[Task], Result]) -> Iterator[Result]:
    """The results of `work` on every task, in any order, each share in a process of its own.

    Raises what `work` raised first, and ErofsEdgeError where a process was killed. Processes end with the iterator.
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
    end_with_parent(parent)  # it may be killed: nobody wants what we write then
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent too, which ends us
    with suppress(BrokenPipeError):
        try:
            for task in share:
                pipe.send(("result", work(task)))
        except Exception as error:
            pipe.send(("failed", error))
        else:
            pipe.send(("done", None))
