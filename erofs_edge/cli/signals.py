# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and SIGHUP: they are raised as exceptions, so that incomplete files and child processes are removed.

Python raises them wherever the program happens to be. Two kinds of places do not bear that. While a module is
imported, and while msgspec examines a type, code written in C drops the exception or crashes: such a signal waits
until that is done. Callbacks (of forks, of objects that are destroyed) let Python print the exception and go on: it is
then raised again. Waiting costs nothing as long as no signal arrives.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

DELICATE = ("_frozen_importlib", "importlib._", "msgspec.", __name__)
"""how the names of modules begin in whose functions, and in what these call, no signal may raise an exception"""


def unwind_when_terminated() -> None:
    """From now on SIGTERM and SIGHUP raise SystemExit with the exit code that shells report for the signal."""
    signal.signal(signal.SIGTERM, _terminated)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _terminated)
    report = sys.unraisablehook

    def look(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
            _raise_later(dropped.exc_value)
        else:
            report(dropped)

    sys.unraisablehook = look


def unwind_on_ctrl_c() -> None:
    """From now on Ctrl-C must clean up files and child processes; until here `erofs_edge.__main__` let it end the
    process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupted)


def signal_behind(error: BaseException) -> BaseException | None:
    """Return the exception of a signal during whose cleanup `error` was raised, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt | SystemExit):
        seen = seen.__cause__ or seen.__context__
    return seen


def _terminated(number: int, frame: FrameType | None) -> None:
    _raise(SystemExit(128 + number), frame)


def _interrupted(_number: int, frame: FrameType | None) -> None:
    _raise(KeyboardInterrupt(), frame)


def _raise(error: BaseException, frame: FrameType | None) -> None:
    if not _is_delicate(frame):
        raise error
    _raise_later(error)


def _is_delicate(frame: FrameType | None) -> bool:
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith(DELICATE):
        frame = frame.f_back
    return frame is not None


def _raise_later(error: BaseException) -> None:
    """Raise the error at the next function call or return that is not in a delicate place."""

    def look(frame: FrameType, _event: str, _argument: object) -> None:
        if not _is_delicate(frame):
            sys.setprofile(None)
            raise error

    sys.setprofile(look)
