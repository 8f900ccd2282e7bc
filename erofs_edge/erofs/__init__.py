# SPDX-License-Identifier: Apache-2.0
"""EROFS images: `open` or `build` one; see docs/python-api.md. Both are imported only on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erofs_edge.erofs.api import build, open  # noqa: A004  the name that users know

__all__ = ["build", "open"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("erofs_edge.erofs.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
