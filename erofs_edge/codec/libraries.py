# SPDX-License-Identifier: Apache-2.0
"""C libraries of the operating system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def system_libraries(name: str) -> Iterator[str]:
    """Yield the paths of a library, for example ``lz4``: at most one, or two on Windows, where it may be called
    ``liblz4``. The search is slow if the library is missing."""
    from ctypes.util import find_library

    for known in (name, f"lib{name}") if os.name == "nt" else (name,):
        with suppress(OSError):  # raised by Python's search if a compiler names files that do not exist
            if (path := find_library(known)) is not None:
                yield path
