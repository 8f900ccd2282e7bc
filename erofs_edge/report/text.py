# SPDX-License-Identifier: Apache-2.0
"""Text for a page: escaped, with unprintable characters made visible; sizes in words."""

from __future__ import annotations

from html import escape


def shown(value: object) -> str:
    """Escape for use inside elements and quoted attributes. Control characters, characters that change the direction of
    text, and bytes of names that are not UTF-8 are shown as escapes."""
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(value))
    return escape(text.encode("utf-8", "backslashreplace").decode())


def size_text(size: int) -> str:
    """Bytes in the powers of 1024 that manifests use."""
    value, unit = float(abs(size)), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    text = f"{value:.0f} B" if unit == "B" else f"{value:.{1 if value < 99.95 else 0}f} {unit}"
    return f"-{text}" if size < 0 else text


def change_text(old: int, new: int) -> str:
    """The difference of two sizes with its sign."""
    return "same" if old == new else f"{'+' if new > old else ''}{size_text(new - old)}"
