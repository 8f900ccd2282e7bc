# SPDX-License-Identifier: Apache-2.0
"""Tasks for forked processes, which take them over a socket and return what they find through pipes."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeVar

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.forks import end_with_parent, ending_here, tell

if TYPE_CHECKING:
    import socket

Task = TypeVar("Task")
Result = TypeVar("Result")
TASK_MAX = 64 << 10  # bytes; the buffer of a socket has room for several
_LENGTH = Struct("<Q")  # of the message that follows
_HINT = "is there enough memory? where there is an option --jobs, --jobs 1 does without other processes"


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
