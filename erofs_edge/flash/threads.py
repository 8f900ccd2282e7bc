# SPDX-License-Identifier: Apache-2.0
"""Threads that are made when they have something to do: a target that takes files as they are has nothing for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Sequence[Item], count: int) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in the order of the items, by `count` threads at most; none for a single item. What `work`
    raises is raised in its turn. Threads end after what they are at where nobody wants more.

    The standard library's pools do as much, and load a tenth of all that a flash of what is there takes.
    """
    if len(items) < 2 or count < 2:
        for item in items:
            yield item, work(item)
        return
    waiting: Iterator[tuple[int, Item]] = enumerate(items)
    turn = threading.Condition()
    found: dict[int, tuple[Result | None, BaseException | None]] = {}

    def run() -> None:
        while True:
            with turn:
                number, item = next(waiting, (-1, items[0]))
            if number < 0:
                return
            outcome: tuple[Result | None, BaseException | None]
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
            yield item, cast("Result", result)
    finally:
        with turn:
            waiting = iter(())
        for thread in threads:
            thread.join()


class Threads:
    """Two of them, for as long as the block lasts. Work is submitted from one thread only."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[str, bytes], Result], name: str, data: bytes) -> Future[Result]:
        """What will be the result of work(name, data)."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(2)
        return self._pool.submit(work, name, data)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
