# SPDX-License-Identifier: Apache-2.0
"""C libraries of the system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def system_libraries(name: str) -> Iterator[str]:
    """The paths of a library, ``lz4`` for instance: at most one, or two on Windows, where it may be called ``liblz4``.
    Looking takes a while where it is not there."""
    from ctypes.util import find_library

    for known in (name, f"lib{name}") if os.name == "nt" else (name,):
        with suppress(OSError):  # of Python's own search, where a compiler names files that are not there
            if (path := find_library(known)) is not None:
                yield path
