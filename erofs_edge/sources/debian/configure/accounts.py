# SPDX-License-Identifier: Apache-2.0
"""Users and groups as values, and the four files made from them: passwd, group, shadow, gshadow.

Formats: passwd(5), group(5), shadow(5), gshadow(5). The day of the last password change is the build's epoch in days,
the only date in these files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from erofs_edge.errors import SourceError
from erofs_edge.manifest.model import Lock
from erofs_edge.tree import BytesContent, FileTree, Inode

NOLOGIN = "/usr/sbin/nologin"
SHADOW_GID = 42
SECONDS_A_DAY = 86400
LOCKED = "!*"
"""the password field of accounts made by systemd-sysusers"""
AGEING = "0:99999:7:::"
"""minimum, maximum and warning days as shadow's own tools set them from login.defs"""


class Ids(NamedTuple):
    """Account numbers by name, as a lock pins them."""

    users: dict[str, int]
    groups: dict[str, int]

    @classmethod
    def of(cls, lock: Lock) -> Ids:
        """The ids pinned in a lock."""
        return cls(lock.users, lock.groups)


@dataclass(frozen=True, slots=True)
class Account:
    """One user. `password` as in shadow(5); `ageing` are the six shadow fields after the day of the last change."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = "/"
    shell: str = NOLOGIN
    password: str = LOCKED
    ageing: str = ":::::"


@dataclass(slots=True)
class Group:
    """One group; `password` is its gshadow field."""

    name: str
    gid: int
    members: list[str] = field(default_factory=list)
    password: str = LOCKED


@dataclass(slots=True)
class Accounts:
    """All users and groups by name, in the order of their files."""

    users: dict[str, Account] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def uid_owner(self, uid: int) -> str | None:
        return next((user.name for user in self.users.values() if user.uid == uid), None)

    def gid_owner(self, gid: int) -> str | None:
        return next((group.name for group in self.groups.values() if group.gid == gid), None)

    def join(self, user: str, group: str) -> None:
        """Make a user a member of a group."""
        members = self.groups[group].members
        if user not in members:
            members.append(user)

    def update(self, name: str, **changes: str | int) -> None:
        """Change fields of an existing user."""
        self.users[name] = replace(self.users[name], **changes)  # type: ignore[arg-type]


def base_accounts(tree: FileTree, *, configured: bool = False) -> Accounts:
    """Debian's fixed users and groups, from base-passwd's master files. Without that package, or if the system is
    `configured` already, those in /etc."""
    accounts = Accounts()
    master = tree.get("usr/share/base-passwd/passwd.master") is not None and not configured
    folder, suffix = ("usr/share/base-passwd", ".master") if master else ("etc", "")
    shadow = {} if master else _shadow(tree, "etc/shadow")
    gshadow = {} if master else _shadow(tree, "etc/gshadow")
    for row in _rows(tree, f"{folder}/passwd{suffix}", 7):
        name, password, uid, gid, gecos, home, shell = row
        password, ageing = shadow.get(name, (password or "*", AGEING))
        accounts.users[name] = Account(name, int(uid), int(gid), gecos, home, shell, password, ageing)
    for row in _rows(tree, f"{folder}/group{suffix}", 4):
        name, password, gid, members = row
        password = gshadow.get(name, (password or "*", ""))[0]
        accounts.groups[name] = Group(name, int(gid), [m for m in members.split(",") if m], password)
    return accounts


def write_accounts(tree: FileTree, accounts: Accounts, epoch: int) -> None:
    """Write the four files, and empty subuid and subgid, to /etc. `epoch` in seconds since 1970."""
    day = epoch // SECONDS_A_DAY
    users, groups = accounts.users.values(), accounts.groups.values()
    passwd = [f"{u.name}:x:{u.uid}:{u.gid}:{u.gecos}:{u.home}:{u.shell}" for u in users]
    group = [f"{g.name}:x:{g.gid}:{','.join(g.members)}" for g in groups]
    shadow = [f"{u.name}:{u.password}:{day}:{u.ageing}" for u in users]
    gshadow = [f"{g.name}:{g.password}::{','.join(g.members)}" for g in groups]
    for name, lines, mode, gid in (
        ("passwd", passwd, 0o644, 0),
        ("group", group, 0o644, 0),
        ("shadow", shadow, 0o640, SHADOW_GID),
        ("gshadow", gshadow, 0o640, SHADOW_GID),
    ):
        text = "".join(line + "\n" for line in lines)
        tree.add(
            f"etc/{name}",
            Inode(
                0o100000 | mode,
                0,
                gid,
                content=BytesContent(text.encode("utf-8", "surrogateescape")),
                origin="accounts",
            ),
        )
    for name in ("subuid", "subgid"):
        if tree.get(f"etc/{name}") is None:
            tree.add(f"etc/{name}", Inode(0o100644, origin="accounts"))


def _rows(tree: FileTree, path: str, columns: int) -> list[list[str]]:
    """The rows of passwd (7 columns) or group (4). Raises SourceError on a malformed one."""
    rows = [line.split(":") for line in _lines(tree, path)]
    for row in rows:
        if len(row) != columns or not all(re.fullmatch("[0-9]{1,10}", n) for n in row[2 : 4 if columns == 7 else 3]):
            raise SourceError(f"bad line {':'.join(row)!r}", where="/" + path)
    return rows


def _shadow(tree: FileTree, path: str) -> dict[str, tuple[str, str]]:
    """name → (password, the fields after the third) of shadow and gshadow."""
    rows = [line.split(":", 3) for line in _lines(tree, path)]
    return {row[0]: (row[1], row[3] if len(row) > 3 else "") for row in rows if len(row) > 1}


def _lines(tree: FileTree, path: str) -> list[str]:
    node = tree.get(path, follow=True)
    text = node.read().decode("utf-8", "surrogateescape") if node is not None and node.is_file else ""
    return [line for line in text.splitlines() if line]
