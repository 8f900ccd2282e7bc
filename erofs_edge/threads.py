# SPDX-License-Identifier: Apache-2.0
"""Threads that exist only while there is work for them; the modules they need are not even imported before.

A build whose work is done by processes needs no thread pool, nor does flashing to a file; importing Python's pool takes
a tenth of the whole time of a flash that has nothing to write.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class Threads:
    """A pool of `count` threads like ThreadPoolExecutor. To be used from one thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> Future[T]:
        """See concurrent.futures.Executor."""
        return self._started().submit(call, *args, **named)

    def map(self, call: Callable[[U], T], items: Iterable[U]) -> Iterator[T]:
        """See concurrent.futures.Executor. If the pool has not been started, its threads end with this iteration."""
        if self._pool is None:
            return (found for _, found in in_order(call, list(items), self._count))
        return self._pool.map(call, items)

    def shutdown(self) -> None:
        """Cancel calls that have not begun and wait for the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.shutdown()

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="erofs-edge")
        return self._pool


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(items: Iterator[T], pool: Threads) -> Iterator[T]:
    """Yield the same items; while one is in use, a thread of the pool makes the next. An exception is raised when its
    item's turn comes. Nothing else may take items from the iterator."""
    end = object()
    coming = pool.submit(next, items, end)
    while (item := coming.result()) is not end:
        coming = pool.submit(next, items, end)
        yield cast("T", item)


class Background:
    """A single thread, `name`, that does one thing at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._given, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._call: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        self._busy = False

    def start(self, call: Callable[[], Any]) -> None:
        """Run `call` in the thread. `wait` must be called before the next `start`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._call, self._busy = call, True
        self._given.release()

    def wait(self) -> None:
        """Wait until the call is done. Raises what it raised."""
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
            except BaseException as error:  # raised by `wait`
                self._error = error
            self._call = None  # lets go of what it references
            self._done.release()


def in_order(work: Callable[[U], T], items: Sequence[U], count: int) -> Iterator[tuple[U, T]]:
    """Yield (item, work(item)) in the order of the items, using at most `count` threads; none for a single item. An
    exception of `work` is raised when its item's turn comes. If iteration stops early, threads end after their current
    item."""
    if len(items) < 2 or count < 2:
        for item in items:
            yield item, work(item)
        return
    waiting: Iterator[tuple[int, U]] = enumerate(items)
    turn = threading.Condition()
    found: dict[int, tuple[T | None, BaseException | None]] = {}

    def run() -> None:
        while True:
            with turn:
                number, item = next(waiting, (-1, items[0]))
            if number < 0:
                return
            outcome: tuple[T | None, BaseException | None]
            try:
                outcome = work(item), None
            except BaseException as error:
                outcome = None, error
            with turn:
                found[number] = outcome
                turn.notify()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(count, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for number, item in enumerate(items):
            with turn:
                while number not in found:
                    turn.wait()
                result, error = found.pop(number)
            if error is not None:
                raise error
            yield item, cast("T", result)
    finally:
        with turn:
            waiting = iter(())
        for thread in threads:
            thread.join()
