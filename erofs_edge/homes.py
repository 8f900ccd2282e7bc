# SPDX-License-Identifier: Apache-2.0
"""The user's own folders for what is kept between runs, unless an environment variable names another place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from erofs_edge.errors import ErofsEdgeError


def user_folder(kind: Literal["cache", "data", "state"], variable: str) -> Path:
    """Return our folder of that kind as an absolute path. It may not exist yet.

    Raises ErofsEdgeError, which suggests setting `variable`, if the user has no home: a numeric user without an
    account, as in containers, and HOME unset.
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
    if not folder.is_absolute():  # without a home, older versions of platformdirs return "~/.cache" unexpanded
        hint = f"set HOME, or name a folder in {variable}"
        raise ErofsEdgeError("this user has no home folder, and HOME is not set", hint=hint)
    return folder
