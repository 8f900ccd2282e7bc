# SPDX-License-Identifier: Apache-2.0
"""Names of files as text and back: what is no UTF-8 comes through, also where names of the system cannot be so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def _decoded(name: Name) -> str:
    raw = os.fspath(name)
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def _encoded(name: Name) -> bytes:
    raw = os.fspath(name)
    if isinstance(raw, bytes):
        return raw
    try:
        return raw.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which Windows takes for a name
        return os.fsencode(raw)


_comes_through = sys.getfilesystemencodeerrors() == "surrogateescape"  # not on Windows
fsdecode: Callable[[Name], str] = os.fsdecode if _comes_through else _decoded
fsencode: Callable[[Name], bytes] = os.fsencode if _comes_through else _encoded
