# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share or that have a file of their own; and the type of path arguments."""

from __future__ import annotations

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


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine several options into one decorator, in the order in which --help lists them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
