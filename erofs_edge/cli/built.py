# SPDX-License-Identifier: Apache-2.0
"""A board on the command line, and the folder of its build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.errors import ErofsEdgeError, UsageError

if TYPE_CHECKING:
    from erofs_edge.manifest.load import Loaded
    from erofs_edge.manifest.model import Board


class BoardOrPath(click.Path):
    """An existing path, or the name of a stock board, which is converted to the path of its file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert an argument; click calls this."""
        from erofs_edge.manifest.stock import find, is_name

        path = Path(value)
        return super().convert(
            value if path.exists() or not is_name(str(path)) else find(path, ("boards",)), param, ctx
        )


def said(board: Path) -> str:
    """Return a board as it is named on the command line: by name if it is a stock one of the installed package."""
    from erofs_edge.manifest.stock import is_shipped

    return board.stem if is_shipped(board) else str(board)


def built(board: Path, out: Path | None) -> tuple[Loaded[Board], Path]:
    """Return a board file (or the file of a stock board) and the folder of its build: `out`, or out/BOARD.

    Raises ManifestError if there is no such board, UsageError if the folder contains the build of another one. A
    folder without a build is accepted: whatever reads it reports what is missing.
    """
    from erofs_edge.build.record import RELEASE, read_release
    from erofs_edge.manifest.load import load_board

    loaded = load_board(board)
    name = loaded.value.board
    folder = out or Path("out") / name
    other = read_release(folder).get("board", name) if (folder / RELEASE).is_file() else name
    if other != name:
        raise UsageError(
            f"this is the build of board '{other}', not of '{name}'",
            where=str(folder),
            hint=f"erofs-edge build {said(board)} -o FOLDER, then give -o FOLDER here too",
        )
    return loaded, folder


def check_built(board: Path, out: Path | None, folder: Path) -> None:
    """Raises ErofsEdgeError, with the command that builds the board, if the folder has no build."""
    from erofs_edge.build.record import RELEASE

    if not (folder / RELEASE).exists():
        hint = f"erofs-edge build {said(board)}" + (f" -o {out}" if out else "")
        raise ErofsEdgeError("nothing has been built here", where=str(folder), hint=hint)
