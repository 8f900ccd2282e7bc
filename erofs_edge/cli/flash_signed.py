# SPDX-License-Identifier: Apache-2.0
"""`flash` refuses unsigned images, unless they are explicitly allowed and the board is for development."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from erofs_edge.cli.light import load_dataclasses
from erofs_edge.cli.output import note, step
from erofs_edge.errors import UsageError, VerificationError


@contextmanager
def signatures(what: Path | None, image: Path, *, allowed: bool) -> Iterator[Callable[[], None]]:
    """Check an image's signatures while the block runs, in a separate process where possible (and if there is anything
    to check). Yields a function that waits for the result; call it before anything is written.

    That function raises VerificationError if the image is not signed, UsageError if unsigned images are allowed but the
    board is not for development.
    """
    with _looking(image) as found:

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


def _looking(image: Path) -> AbstractContextManager[Callable[[], None]]:
    """The check of an image while the block runs; an image that is not a disk needs none."""
    from erofs_edge.verify.signed import is_plain

    if is_plain(image):
        return nullcontext(_nothing)
    from erofs_edge.build.beside import beside

    return beside(partial(_look, image))


def _look(image: Path) -> None:
    from erofs_edge.verify.signed import refuse_unsigned

    load_dataclasses()  # device trees are dataclasses: load all that they need before the first one
    refuse_unsigned(image)


def _nothing() -> None:
    """Do nothing: an image that is not a disk needs no process."""


def _is_development(what: Path | None, image: Path) -> bool:
    """Whether the board is for development: by the board file if one is given, else by the build's record."""
    if what is not None and what.suffix in {".yaml", ".yml"}:
        from erofs_edge.manifest.load import load_board

        return load_board(what).value.sign.key.startswith("dev:")
    from erofs_edge.verify.signed import is_development

    return is_development(image)
