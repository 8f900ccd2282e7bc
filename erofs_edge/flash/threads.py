# SPDX-License-Identifier: Apache-2.0
"""Threads that are made when they have something to do: a target that takes files as they are has nothing for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Result = TypeVar("Result")


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
