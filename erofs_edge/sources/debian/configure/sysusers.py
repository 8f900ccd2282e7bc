# SPDX-License-Identifier: Apache-2.0
"""sysusers.d(5): the users and groups that packages request, as values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.confd import Line, drop_in_lines, fields
from erofs_edge.tree import FileTree

MAX_RANGE = 0xFFFF
"""the largest id that is ever chosen"""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
FIELD = re.compile(r"[^:\n\x00-\x1f\ud800-\udfff]*")
"""characters allowed between the colons of passwd"""


@dataclass(frozen=True, slots=True)
class Request:
    """One line. `uid` and `gid` are numbers if the line fixes them; `group` names the primary group instead.

    kind     u (user), g (group), m (membership of `name` in `group`), r (range of ids to choose from)
    range    of kind r: lowest and highest id
    owner_of a path inside the tree whose owner determines the id
    """

    kind: Literal["u", "g", "m", "r"]
    name: str
    where: str
    uid: int | None = None
    gid: int | None = None
    group: str = ""
    owner_of: str = ""
    gecos: str = ""
    home: str = ""
    shell: str = ""
    expired: bool = False
    range: tuple[int, int] = (0, 0)


def read_sysusers(tree: FileTree) -> list[Request]:
    """All requests of a tree, in systemd-sysusers' order. Raises SourceError on a bad line."""
    return list(_requests(tree))


def _number(text: str, line: Line) -> int | None:
    """An id, None for a word that is not a number. Raises SourceError for one outside the kernel's range."""
    if not text.isascii() or not text.isdigit():
        return None
    if int(text) >= 1 << 32:
        raise SourceError(f"no such id: {text}", where=line.where)
    return int(text)


def _requests(tree: FileTree) -> Iterator[Request]:
    for line in drop_in_lines(tree, "sysusers.d"):
        words = fields(line, 6)
        kind, name, ident = words[:3]
        if kind != "r" and not NAME.fullmatch(name):
            raise SourceError(f"bad name {name!r}", where=line.where)
        if not all(FIELD.fullmatch(word) for word in words[3:]):
            raise SourceError("a field holds what passwd cannot", where=line.where)
        if kind in ("u", "u!"):
            yield _user(line, words)
        elif kind == "g":
            yield Request(
                "g", name, line.where, gid=_number(ident, line), owner_of=ident if ident.startswith("/") else ""
            )
        elif kind == "m":
            yield Request("m", name, line.where, group=ident)
        elif kind == "r":
            yield Request("r", name, line.where, range=_range(line, ident))
        else:
            raise SourceError(f"unknown kind of line {kind!r}", where=line.where)


def _user(line: Line, words: list[str]) -> Request:
    kind, name, ident, gecos, home, shell = words
    uid, _, group = ident.partition(":") if not ident.startswith("/") else ("", "", "")
    if uid not in ("", "-") and _number(uid, line) is None:
        raise SourceError(f"bad user id {uid!r}", where=line.where)
    return Request(
        "u",
        name,
        line.where,
        uid=_number(uid, line),
        gid=_number(group, line),
        group=group if group and _number(group, line) is None else "",
        owner_of=ident if ident.startswith("/") else "",
        gecos=gecos,
        home=home,
        shell=shell,
        expired=kind == "u!",
    )


def _range(line: Line, text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    first, last = _number(low, line), _number(high or low, line)
    if first is None or last is None or not first <= last <= MAX_RANGE:
        raise SourceError(f"bad range {text!r}", where=line.where)
    return first, last
