# SPDX-License-Identifier: Apache-2.0
"""How much of a build's time the codecs take: their calls measured, in every thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """Adds up the calls that it watches. `clock` tells a thread's own seconds of processor time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.calls = 0
        self.seconds = 0.0

    def watch(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, measured."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = self._clock() - start
                with self._lock:
                    self.calls += 1
                    self.seconds += seconds

        return watched
