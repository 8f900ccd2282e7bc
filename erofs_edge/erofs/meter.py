# SPDX-License-Identifier: Apache-2.0
"""Measures how much of a build's time is spent in codecs, in every thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """Adds up the calls that it watches. `clock` returns the calling thread's processor time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: list[float] = []  # threads may append to this without a lock
        self._calls, self._seconds = 0, 0.0

    @property
    def calls(self) -> int:
        """Number of calls so far."""
        return self._calls + len(self._spent)

    @property
    def seconds(self) -> float:
        """Time spent in these calls."""
        return self._seconds + sum(self._spent)

    def add(self, calls: int, seconds: float) -> None:
        """Add what another process has measured."""
        self._calls += calls
        self._seconds += seconds

    def take(self) -> tuple[int, float]:
        """Return calls and seconds since the last time, and stop counting them here."""
        count = len(self._spent)
        seconds = sum(self._spent[:count])
        del self._spent[:count]
        return count, seconds

    def watch(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function so that its calls are measured, unless they raise."""
        clock, note = self._clock, self._spent.append

        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            start = clock()
            result = function(*args, **kwargs)
            note(clock() - start)
            return result

        return watched
