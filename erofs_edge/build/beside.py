# SPDX-License-Identifier: Apache-2.0
"""Run work beside the next steps of a build, in a forked process with an interpreter of its own.

A thread that hashes releases the interpreter's lock for a quarter of a millisecond at a time, and then waits up to five
milliseconds to get it back from the other thread: beside Python code it makes almost no progress.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

from erofs_edge.forks import ending_here, may_fork, tell

Result = TypeVar("Result")
NOTHING = b"."
"""the message of work without a result: not a pickle, so that the module need not be loaded on either side"""


@contextmanager
def beside(work: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Run `work` while the block runs. The function yielded waits for its result, or raises what it has raised.

    If no process can be forked safely, a thread is used. Work that changes files must be repeatable: if the process is
    killed before it delivers, the work is done here when the result is requested. If the block ends without requesting
    it, the process is ended too.
    """
    if not may_fork():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(work).result
        return
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        _deliver(work, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        try:
            yield cache(lambda: _received(pipe.read(), work))
        finally:
            os.kill(child, signal.SIGKILL)  # if it has exited it is still a zombie, so no other process is hit
            os.waitpid(child, 0)


def _received(message: bytes, work: Callable[[], Result]) -> Result:
    if message == NOTHING:
        return cast(Result, None)
    import pickle

    try:
        done, value = pickle.loads(message)  # written by a process of ours
    except (EOFError, pickle.UnpicklingError):
        return work()
    if not done:
        raise value
    result: Result = value
    return result


def _deliver(work: Callable[[], object], pipe: int) -> None:
    """In the forked process, which exits here: write (True, result) or (False, error) into the pipe."""
    with ending_here():
        tell(pipe, _message(work))


def _message(work: Callable[[], object]) -> bytes:
    found: tuple[bool, Any]
    try:
        found = (True, work())
    except Exception as error:
        found = (False, error)
    if found[0] and found[1] is None:
        return NOTHING
    import pickle

    return pickle.dumps(found)
