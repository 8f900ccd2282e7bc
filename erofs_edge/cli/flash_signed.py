# SPDX-License-Identifier: Apache-2.0
"""`flash`: nothing that nobody signed is written, unless that is asked for on a board that is for development."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from erofs_edge.build.beside import beside
from erofs_edge.cli.light import load_dataclasses
from erofs_edge.cli.output import note, step
from erofs_edge.errors import UsageError, VerificationError


@contextmanager
def signatures(what: Path | None, image: Path, *, allowed: bool) -> Iterator[Callable[[], None]]:
    """Look at an image's signatures while the block goes on, in a process of its own where that can be (and where there
    is anything to look at). What is yielded waits for the end, and is to be called before anything is written.

    That raises VerificationError where the image is not signed, UsageError where that is allowed on a board that is not
    for development.
    """
    from erofs_edge.verify.signed import is_plain

    with nullcontext(_nothing) if is_plain(image) else beside(partial(_look, image)) as found:

        def settle() -> None:
            try:
                with step("Checking the image's signatures"):
                    found()
            except VerificationError as error:
                if not allowed:
                    raise VerificationError(
                        f"not flashed: {error.message}", where=error.where, hint=error.hint
                    ) from error
                if not _is_development(what, image):
                    raise UsageError(
                        f"{error.message}; --allow-unsigned is for boards whose sign.key is a development key",
                        where=str(image),
                        hint="name the board file if this is such a board, or build again to get a signed image",
                    ) from error
                note(f"warning: {error.message}")

        yield settle


def _look(image: Path) -> None:
    from erofs_edge.verify.signed import refuse_unsigned

    load_dataclasses()  # device trees are such: on the way to the first all that they need is loaded
    refuse_unsigned(image)


def _nothing() -> None:
    """Of an image that is no disk nothing is started."""


def _is_development(what: Path | None, image: Path) -> bool:
    """By the board file where one is named, else by the build's record."""
    if what is not None and what.suffix in {".yaml", ".yml"}:
        from erofs_edge.manifest.load import load_board

        return load_board(what).value.sign.key.startswith("dev:")
    from erofs_edge.verify.signed import is_development

    return is_development(image)
