# SPDX-License-Identifier: Apache-2.0
"""The part of a key's URI after '?', as `name=value&name=value` with %XX escapes (RFC 3986)."""

from __future__ import annotations

import urllib.parse

from erofs_edge.errors import UsageError


def parameters(scheme: str, rest: str, known: set[str]) -> tuple[str, dict[str, str]]:
    """(text before '?', parameters). Raises UsageError for an unknown parameter or one without a value."""
    head, _, query = rest.partition("?")
    found: dict[str, str] = {}
    for item in query.split("&") if query else ():
        name, equals, value = item.partition("=")
        if name not in known or not equals or name in found:
            raise UsageError(f"{scheme}: cannot use {item!r}", hint=f"known are {', '.join(sorted(known))}")
        found[name] = urllib.parse.unquote(value)
    return head, found
