# SPDX-License-Identifier: Apache-2.0
"""`flash`: nothing that nobody signed is written, unless that is asked for on a board that is for development."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from erofs_edge.cli.output import note, step
from erofs_edge.errors import UsageError, VerificationError


def refuse_unsigned(what: Path | None, image: Path, *, allowed: bool) -> Callable[[], None]:
    """Begin to look at an image's signatures, on another thread. What is returned waits for the end, and is to be
    called before anything is written.

    That raises VerificationError where the image is not signed, UsageError where that is allowed on a board that is not
    for development.
    """
    pool = ThreadPoolExecutor(1)
    found = pool.submit(_look, image)
    pool.shutdown(wait=False)

    def settle() -> None:
        try:
            with step("Looking at the image's signatures"):
                found.result()
        except VerificationError as error:
            if not allowed:
                raise VerificationError(f"not flashed: {error.message}", where=error.where, hint=error.hint) from error
            if not _is_development(what, image):
                raise UsageError(
                    f"{error.message}; --allow-unsigned is for boards whose sign.key is a development key",
                    where=str(image),
                    hint="name the board file, or build again",
                ) from error
            note(f"warning: {error.message}")

    return settle


def _look(image: Path) -> None:
    from erofs_edge.verify.signed import refuse_unsigned as look

    look(image)


def _is_development(what: Path | None, image: Path) -> bool:
    """By the board file where one is named, else by the build's record."""
    if what is not None and what.suffix in {".yaml", ".yml"}:
        from erofs_edge.manifest.load import load_board

        return load_board(what).value.sign.key.startswith("dev:")
    from erofs_edge.verify.signed import is_development

    return is_development(image)
