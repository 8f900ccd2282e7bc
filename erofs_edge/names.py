# SPDX-License-Identifier: Apache-2.0
"""Convert file names to text and back. Names that are not valid UTF-8 survive the round trip, also on systems whose own
file names cannot be like that."""

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
    except UnicodeEncodeError:  # a lone surrogate, which Windows allows in a name
        return os.fsencode(raw)


_comes_through = sys.getfilesystemencodeerrors() == "surrogateescape"  # not on Windows
fsdecode: Callable[[Name], str] = os.fsdecode if _comes_through else _decoded
fsencode: Callable[[Name], bytes] = os.fsencode if _comes_through else _encoded
