# SPDX-License-Identifier: Apache-2.0
"""Folders of the user's own: what is kept between runs where no variable names another place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from erofs_edge.errors import ErofsEdgeError


def user_folder(kind: Literal["cache", "data", "state"], variable: str) -> Path:
    """Our folder of that kind, absolute; it need not exist.

    Raises ErofsEdgeError, which says that `variable` could name one, where the user has no home: a number without an
    account, as containers run programs, and no HOME.
    """
    import platformdirs

    folders = {
        "cache": platformdirs.user_cache_path,
        "data": platformdirs.user_data_path,
        "state": platformdirs.user_state_path,
    }
    try:
        folder = folders[kind]("erofs-edge")
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # where there is no home, an older platformdirs gives "~/.cache" as it is
        hint = f"set HOME, or name a folder in {variable}"
        raise ErofsEdgeError("this user has no home folder, and HOME is not set", hint=hint)
    return folder
