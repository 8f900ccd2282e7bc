# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, or that are told in a file of their own; and a path, as they have it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

Command = Callable[..., Any]


class FilePath(click.Path):
    """As click.Path with pathlib's Path for path_type, which is loaded for the first value only."""

    def coerce_path_result(self, value: str | bytes | os.PathLike[str]) -> Path:
        """The value that the command gets."""
        from pathlib import Path

        return Path(os.fsdecode(value))


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for many options, in the order in which --help lists them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
