# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share or that have a file of their own; and the type of path arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

Command = Callable[..., Any]


class FilePath(click.Path):
    """Like click.Path with pathlib's Path as path_type, but imports pathlib only for the first value."""

    def coerce_path_result(self, value: str | bytes | os.PathLike[str]) -> Path:
        """Return the value that the command gets."""
        from pathlib import Path

        return Path(os.fsdecode(value))


class Seconds(click.FloatRange):
    """A time limit: at least a second, at most a week."""

    def __init__(self) -> None:
        super().__init__(min=1, max=7 * 24 * 3600)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value that the command gets."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):  # passes every comparison above
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return float(seconds)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine several options into one decorator, in the order in which --help lists them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
