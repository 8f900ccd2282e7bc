# SPDX-License-Identifier: Apache-2.0
"""sysusers.d(5): the users and groups that packages ask for, as requests without an order to run anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.confd import Line, drop_in_lines, fields
from erofs_edge.tree import FileTree


@dataclass(frozen=True, slots=True)
class Request:
    """One line. `uid` and `gid` are numbers where the line fixes them; `group` names the primary group instead.

    kind     u (user), g (group), m (membership of `name` in `group`), r (range of ids to choose from)
    range    of kind r: lowest and highest id
    owner_of a path inside the tree whose owner gives the id
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
    """All requests of a tree, in the order systemd-sysusers reads them. Raises SourceError on a bad line."""
    return list(_requests(tree))


def _requests(tree: FileTree) -> Iterator[Request]:
    for line in drop_in_lines(tree, "sysusers.d"):
        words = fields(line, 6)
        kind, name, ident = words[:3]
        if kind in ("u", "u!"):
            yield _user(line, words)
        elif kind == "g":
            number = int(ident) if ident.isdigit() else None
            yield Request("g", name, line.where, gid=number, owner_of=ident if ident.startswith("/") else "")
        elif kind == "m":
            yield Request("m", name, line.where, group=ident)
        elif kind == "r":
            yield Request("r", name, line.where, range=_range(line, ident))
        else:
            raise SourceError(f"unknown kind of line {kind!r}", where=line.where)


def _user(line: Line, words: list[str]) -> Request:
    kind, name, ident, gecos, home, shell = words
    if not name:
        raise SourceError("a user needs a name", where=line.where)
    uid, _, group = ident.partition(":") if not ident.startswith("/") else ("", "", "")
    if uid not in ("", "-") and not uid.isdigit():
        raise SourceError(f"bad user id {uid!r}", where=line.where)
    return Request(
        "u",
        name,
        line.where,
        uid=int(uid) if uid.isdigit() else None,
        gid=int(group) if group.isdigit() else None,
        group=group if group and not group.isdigit() else "",
        owner_of=ident if ident.startswith("/") else "",
        gecos=gecos,
        home=home,
        shell=shell,
        expired=kind == "u!",
    )


def _range(line: Line, text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdigit() or (high and not high.isdigit()):
        raise SourceError(f"bad range {text!r}", where=line.where)
    return int(low), int(high or low)
