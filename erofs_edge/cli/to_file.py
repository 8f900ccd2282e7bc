# SPDX-License-Identifier: Apache-2.0
"""Write a command's output to a file that the user named."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.writing import beside, refuse_unwritable, settled


def check_output(path: Path) -> None:
    """Check the output path before long work: raises what `write_file` would, as far as that is known in advance."""
    folder = settled(path).absolute().parent
    if not folder.exists():
        hint = f"the folder does not exist: mkdir -p {folder}"
        raise ErofsEdgeError("cannot write: No such file or directory", where=str(path), hint=hint)
    refuse_unwritable(folder)


def write_file(path: Path, data: bytes, what: str) -> None:
    """Write the file into an existing folder. Raises what `writing.new_file` raises, but turns an OSError into an
    ErofsEdgeError that names the file."""
    try:
        with beside(path, what) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ErofsEdgeError(f"cannot write: {error.strerror}", where=str(path)) from error
