# SPDX-License-Identifier: Apache-2.0
"""The private prefix: where it is and what is in it. The build itself needs none of this.

PREFIX/bin/NAME     wrappers: the program under its own loader and libraries, independent of the host's
PREFIX/roots/SUITE  unpacked packages
PREFIX/tools.json   {set: {package: version}}, written last: a set listed there is complete
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from erofs_edge.errors import ToolError
from erofs_edge.homes import user_folder

VARIABLE = "EROFS_EDGE_PREFIX"
STAMP = "tools.json"
SBIN = ("/usr/sbin", "/sbin")
"""where Debian has mke2fs and others, and which is not in the PATH of its ordinary users"""


def prefix() -> Path:
    """EROFS_EDGE_PREFIX, or a folder in the user's cache. Raises ErofsEdgeError if the user has no home."""
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    return user_folder("cache", VARIABLE) / "tools"


def installed(root: Path | None = None) -> dict[str, dict[str, str]]:
    """Versions by set of what has been fetched; empty if nothing has."""
    try:
        found: dict[str, dict[str, str]] = json.loads(((root or prefix()) / STAMP).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def find(name: str, *, host: bool = True) -> Path:
    """The program NAME: from the private prefix, else (with `host`) from PATH or SBIN. Raises ToolError."""
    private = prefix() / "bin" / name
    if private.exists():
        return private
    on_path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])) if host else None
    if on_path:
        return Path(on_path)
    oracles = "" if name.startswith("qemu-") else " --oracles"
    raise ToolError(f"{name} not found", hint=f"erofs-edge tools fetch{oracles}")
