# SPDX-License-Identifier: Apache-2.0
"""Convert regular expressions of other programs' configuration files (POSIX extended, PCRE) to Python's, over bytes."""

from __future__ import annotations

import re
import warnings

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t\n\r\f\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_CLASS = re.compile(r"\[:([a-z]+):\]")
_BRACKET = re.compile(r"\\.|\[\^?\]?(?:\[:[a-z]+:\]|[^\]\\]|\\.)*\]", re.S)


def compile_regex(pattern: str) -> re.Pattern[bytes]:
    """Raises ValueError, with the reason, for an invalid expression. '.' matches newlines too."""
    try:
        translated = _BRACKET.sub(lambda match: _bracket(match[0]), pattern)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            return re.compile(translated.encode("utf-8", "surrogateescape"), re.S)
    except (re.error, FutureWarning, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _bracket(text: str) -> str:
    """A bracket expression with named classes spelled out and '[' inside escaped; the rest is unchanged."""
    if not text.startswith("["):
        return text
    parts = _CLASS.split(text[1:-1])
    spelled = [part if at % 2 else part.replace("[", r"\[") for at, part in enumerate(parts)]
    for at in range(1, len(spelled), 2):
        if spelled[at] not in _CLASSES:
            raise ValueError(f"unknown character class [:{spelled[at]}:]")
        spelled[at] = _CLASSES[spelled[at]]
    return "[" + "".join(spelled) + "]"
