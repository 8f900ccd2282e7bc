# SPDX-License-Identifier: Apache-2.0
"""How much of a build's time the codecs take: their calls measured, in every thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """Adds up the calls that it watches. `clock` tells a thread's own seconds of processor time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: list[float] = []  # what threads may add to without a lock
        self._calls, self._seconds = 0, 0.0

    @property
    def calls(self) -> int:
        """So far."""
        return self._calls + len(self._spent)

    @property
    def seconds(self) -> float:
        """Of these calls."""
        return self._seconds + sum(self._spent)

    def add(self, calls: int, seconds: float) -> None:
        """What another process has measured."""
        self._calls += calls
        self._seconds += seconds

    def take(self) -> tuple[int, float]:
        """Calls and seconds since the last time: they do not count here any more."""
        count = len(self._spent)
        seconds = sum(self._spent[:count])
        del self._spent[:count]
        return count, seconds

    def watch(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, measured where it returns."""
        clock, note = self._clock, self._spent.append

        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            start = clock()
            result = function(*args, **kwargs)
            note(clock() - start)
            return result

        return watched
