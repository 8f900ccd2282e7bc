# SPDX-License-Identifier: Apache-2.0
"""Forked processes: when forking is safe, how a child gets its tasks and returns its results, and how it ends.

They are for work of many small Python steps: threads take turns at it, and lose time doing so.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeVar

from erofs_edge.errors import ErofsEdgeError

if TYPE_CHECKING:
    import socket

Task = TypeVar("Task")
Result = TypeVar("Result")
TASK_MAX = 64 << 10  # bytes; the buffer of a socket has room for several
_LENGTH = Struct("<Q")  # of the message that follows
_HINT = "is there enough memory? where there is an option --jobs, --jobs 1 does without other processes"
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


def in_processes(
    tasks: Iterable[Task], count: int, work: Callable[[int, Iterator[Task]], Iterator[Result]]
) -> Iterator[Result]:
    """Run ``work(number, its tasks)`` in `count` forked processes, numbered from 0, and yield what they yield, in any
    order. A process gets its next task when it is ready for it; more are generated here meanwhile. Pickled, a task has
    at most TASK_MAX bytes.

    Raises the first exception of `work`, and ErofsEdgeError if a process cannot be started or was killed. The processes
    end with the iterator.
    """
    import socket

    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # each message reaches one process
    near.setblocking(False)
    parent = os.getpid()
    pids: list[int] = []
    pipes: list[int] = []
    try:
        for number in range(count):
            reading, writing = os.pipe()
            pipes.append(reading)
            try:
                pid = os.fork()
            except OSError as error:
                os.close(writing)
                raise ErofsEdgeError(f"cannot start a process: {error.strerror}", hint=_HINT) from error
            if not pid:
                with ending_here():
                    near.close()
                    end_with_parent(parent)  # it may be killed; then nobody wants our results
                    _child(writing, work(number, _tasks(far)))
            os.close(writing)
            pids.append(pid)
        far.close()
        yield from _exchange(map(pickle.dumps, tasks), near, pipes)
    finally:
        near.close()
        far.close()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # still ours: nobody else has waited for it
            os.waitpid(pid, 0)
        for pipe in pipes:
            os.close(pipe)


def _exchange(messages: Iterator[bytes], feed: socket.socket, pipes: list[int]) -> Iterator[Any]:
    """Send messages as processes take them, and yield the results from the pipes until all have come."""
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    poll.register(feed, select.POLLOUT)
    feeding, running = feed.fileno(), len(pipes)
    message = next(messages, b"")
    while running:
        for ready, _ in poll.poll():
            if ready != feeding:
                kind, value = _received(ready)
                if kind == "failed":
                    raise value
                if kind == "done":
                    poll.unregister(ready)
                    running -= 1
                else:
                    yield value
                continue
            if message and _sent(feed, message):
                message = next(messages, b"")
            if not message:
                poll.unregister(feed)
                feed.close()


def _sent(feed: socket.socket, message: bytes) -> bool:
    """Send a message if there is room for it. If all processes have ended, it is lost, and their pipes tell why."""
    try:
        feed.send(message)
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def _received(pipe: int) -> tuple[str, Any]:
    """Return what a process reports: a result, its failure, or that it is done. Raises ErofsEdgeError if it ended
    without that."""
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    kind, value = pickle.loads(_exactly(pipe, length))
    return kind, value


def _exactly(pipe: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = os.read(pipe, length - len(data))
        if not more:
            raise ErofsEdgeError("a process that was started for this work was killed", hint=_HINT)
        data += more
    return bytes(data)


def _tasks(feed: socket.socket) -> Iterator[Any]:
    while message := feed.recv(TASK_MAX):
        yield pickle.loads(message)


def _child(pipe: int, results: Iterator[object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    try:
        for result in results:
            _report(pipe, "result", result)
    except Exception as error:
        _report(pipe, "failed", error)
    else:
        _report(pipe, "done", None)


def _report(pipe: int, kind: str, value: object) -> None:
    message = pickle.dumps((kind, value))
    tell(pipe, _LENGTH.pack(len(message)) + message)
