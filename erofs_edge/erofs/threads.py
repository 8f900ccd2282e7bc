# SPDX-License-Identifier: Apache-2.0
"""Threads that exist only when there is something for them: what they need is not even loaded before.

A build whose work is done by processes needs no pool of threads, and loading Python's takes as long as compressing a
megabyte.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class Threads:
    """A pool of `count` threads, as ThreadPoolExecutor."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> Future[T]:
        """See concurrent.futures.Executor."""
        return self._started().submit(call, *args, **named)

    def map(self, call: Callable[[U], T], items: Iterable[U]) -> Iterator[T]:
        """See concurrent.futures.Executor."""
        return self._started().map(call, items)

    def shutdown(self) -> None:
        """What has not begun is not done any more; waits for what has."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="erofs")
        return self._pool


class Background:
    """One thread, `name`, that does one thing at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._given, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._call: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        self._busy = False

    def start(self, call: Callable[[], Any]) -> None:
        """Have this done; `wait` comes before the next."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._call, self._busy = call, True
        self._given.release()

    def wait(self) -> None:
        """Until it is done. Raises what it raised."""
        if self._busy:
            self._done.acquire()
            self._busy = False
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait without raising anything, and end the thread."""
        if self._thread is None:
            return
        if self._busy:
            self._done.acquire()
        self._call, self._busy = None, False
        self._given.release()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while True:
            self._given.acquire()
            if self._call is None:
                return
            try:
                self._call()
            except BaseException as error:  # whoever waits raises it
                self._error = error
            self._call = None  # what it holds may be gone now
            self._done.release()
