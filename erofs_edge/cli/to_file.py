# SPDX-License-Identifier: Apache-2.0
"""What commands write to a file that the user named."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.writing import beside, refuse_unwritable, settled


def check_output(path: Path) -> None:
    """For what takes long before it writes: raises as `write_file` would, where that can be known now."""
    folder = settled(path).absolute().parent
    if not folder.exists():
        hint = f"the folder does not exist: mkdir -p {folder}"
        raise ErofsEdgeError("cannot write: No such file or directory", where=str(path), hint=hint)
    refuse_unwritable(folder)


def write_file(path: Path, data: bytes, what: str) -> None:
    """Make the file, in a folder that is there. Raises as `writing.new_file`, of which an OSError is told as an
    ErofsEdgeError that names the file."""
    try:
        with beside(path, what) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(path)) from error
