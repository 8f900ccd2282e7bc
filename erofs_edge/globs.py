# SPDX-License-Identifier: Apache-2.0
"""Path globs as regular expressions over bytes: '*' and '?' match within one name, '**' crosses directories, [a-z] is a
set and [!a-z] its complement."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[(?:[!^].|[^!^])[^\]]*\]|.", re.S)
_RANGE = re.compile(r".-.|.", re.S)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_regex(glob: str) -> bytes:
    """Convert a glob to an expression for `re.DOTALL` and a full match. An unclosed bracket is literal, as in shells.

    Raises ValueError, which says what is wrong, for a range that ends before it begins.
    """
    regex = "".join(map(_regex, _TOKEN.findall(glob))).encode("utf-8", "surrogateescape")
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(str(error)) from error
    return regex


def _regex(token: str) -> str:
    if token in _WILD:
        return _WILD[token]
    if len(token) == 1:
        return re.escape(token)
    start = "[^" if token[1] in "!^" else "["
    ranges = _RANGE.findall(token[len(start) : -1])
    return start + "".join(re.escape(one[0]) + (f"-{re.escape(one[2])}" if one[1:] else "") for one in ranges) + "]"
