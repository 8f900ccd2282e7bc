# SPDX-License-Identifier: Apache-2.0
"""Order of Debian versions (deb-version(7), "Sorting algorithm") and relations between them."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from functools import cache

RELATIONS = {"<<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">>": operator.gt}


@cache
def version_key(version: str) -> tuple[object, ...]:
    """A value that sorts as dpkg compares versions."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, ""
    return _number(epoch if epoch.isdecimal() else ""), _part(upstream), _part(revision)


def satisfies(version: str, relation: str, bound: str) -> bool:
    """Whether a version is in a relation ('<<', '<=', '=', '>=', '>>') to another."""
    return bool(RELATIONS[relation](version_key(version), version_key(bound)))


def relations(field: str) -> Iterator[tuple[str, str, str]]:
    """(package, relation or '', version) of a field without alternatives, such as Replaces."""
    for item in field.replace("\n", " ").split(","):
        match = re.fullmatch(
            r"\s*([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([\w.+~:-]+)\s*\))?\s*", item
        )
        if match:
            # deb-control(5): the old spellings mean "or equal"
            relation = {"<": "<=", ">": ">="}.get(match[2] or "", match[2] or "")
            yield match[1], relation, match[3] or ""


def _part(text: str) -> tuple[object, ...]:
    """Alternating non-digits and numbers. '~' sorts before the end, the end before letters, letters before the rest."""
    key: list[object] = []
    for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text)[:-1] or [("", "")]:
        key.append((*(_weight(letter) for letter in letters), 0))
        key.append(_number(digits))
    return (*key, (0,), _number(""))


def _number(digits: str) -> tuple[int, str]:
    """Sorts like the number, however long it is: Python limits conversion to 4300 digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _weight(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256
