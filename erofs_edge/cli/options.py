# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, or that are told in a file of their own; and what click takes long for."""

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


class ManyOptions(click.Command):
    """A command whose options of one letter are found at once. click looks for them among the long ones first, and for
    similar ones there, in case it is a misspelt one: with forty options that takes half a millisecond each."""

    def make_parser(self, ctx: click.Context) -> Any:
        parser: Any = super().make_parser(ctx)
        usual = parser._process_opts

        def process(arg: str, state: Any) -> None:
            is_short = arg[:2] in parser._short_opt and arg.partition("=")[0] not in parser._long_opt
            (parser._match_short_opt if is_short else usual)(arg, state)

        parser._process_opts = process
        return parser


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for many options, in the order in which --help lists them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
