# SPDX-License-Identifier: Apache-2.0
"""Apply one known effect of a script to the tree."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure import effects as fx
from erofs_edge.sources.debian.configure.accounts import Accounts
from erofs_edge.tree import BytesContent, FileTree, Inode

NO_ID = 0xFFFFFFFF
"""the number that means "none" in chown(2)"""
NOBODY = "add base-passwd to `packages`, which has Debian's accounts, or name it in `users` or `groups`"


def owner_ids(accounts: Accounts, owner: str, where: str) -> tuple[int, int]:
    """(uid, gid) of ``user:group``; both parts may be numbers, and a missing group is the user's own.

    Raises SourceError for a name that does not exist.
    """
    user, _, group = owner.partition(":")
    uid = _number(user, where)
    gid = uid
    if uid is None:
        if user not in accounts.users:
            raise SourceError(f"no user {user!r}", where=where, hint=NOBODY)
        uid, gid = accounts.users[user].uid, accounts.users[user].gid
    if group:
        gid = _number(group, where)
        if gid is None and group not in accounts.groups:
            raise SourceError(f"no group {group!r}", where=where, hint=NOBODY)
        gid = accounts.groups[group].gid if gid is None else gid
    return uid, gid if gid is not None else uid


def _number(text: str, where: str) -> int | None:
    if text == "root":
        return 0  # even if no accounts have been created
    if not re.fullmatch("[0-9]+", text):
        return None
    if int(text) >= NO_ID:
        raise SourceError(f"no such id: {text}", where=where)
    return int(text)


def apply_effect(tree: FileTree, effect: fx.Effect, accounts: Accounts, origin: str) -> None:
    """Apply an effect on files. Accounts, units and generated registries are handled by their own modules."""
    handler = _HANDLERS.get(type(effect))
    if handler is not None:
        handler(tree, effect, accounts, origin)


def _copy(tree: FileTree, effect: fx.Copy, accounts: Accounts, origin: str) -> None:
    source = tree.get(effect.from_, follow=True)
    if source is None or not source.is_file or tree.get(effect.to) is not None:
        return
    mode = source.mode if effect.mode is None else stat.S_IFREG | int(effect.mode, 8)
    tree.add(effect.to, Inode(mode, source.uid, source.gid, content=source.content, origin=origin))


def _file(tree: FileTree, effect: fx.File, accounts: Accounts, origin: str) -> None:
    if tree.get(effect.path) is None:
        uid, gid = owner_ids(accounts, effect.owner, origin)
        content = BytesContent(effect.text.encode())
        tree.add(effect.path, Inode(stat.S_IFREG | int(effect.mode, 8), uid, gid, content=content, origin=origin))


def _directory(tree: FileTree, effect: fx.Directory, accounts: Accounts, origin: str) -> None:
    if tree.get(effect.path) is None:
        uid, gid = owner_ids(accounts, effect.owner, origin)
        tree.add(effect.path, Inode(stat.S_IFDIR | int(effect.mode, 8), uid, gid, origin=origin))


def _link(tree: FileTree, effect: fx.Link, accounts: Accounts, origin: str) -> None:
    old = tree.get(effect.path)
    if old is not None and old.is_dir and not old.children:
        tree.remove(effect.path)
        old = None
    if old is None or not old.is_dir:
        tree.add(effect.path, Inode(stat.S_IFLNK | 0o777, target=effect.target.encode(), origin=origin))


def _permissions(tree: FileTree, effect: fx.Permissions, accounts: Accounts, origin: str) -> None:
    node = tree.get(effect.path, follow=True)
    if node is not None:
        node.uid, node.gid = owner_ids(accounts, effect.owner, origin)
        node.mode = stat.S_IFMT(node.mode) | int(effect.mode, 8)


def _nss(tree: FileTree, effect: fx.Nss, accounts: Accounts, origin: str) -> None:
    node = tree.get("etc/nsswitch.conf")
    if node is None or not node.is_file:
        return
    lines = []
    for line in node.read().decode().splitlines():
        settings, hash_sign, comment = line.partition("#")
        database, colon, services = settings.partition(":")
        if colon and database.strip() in effect.databases and effect.service not in re.split(r"[\s\[\]]+", services):
            settings = f"{settings.rstrip()} {effect.service}{' ' if hash_sign else ''}"
        lines.append(settings + hash_sign + comment)
    node.content = BytesContent("".join(line + "\n" for line in lines).encode())


_HANDLERS: dict[type, Callable[..., None]] = {
    fx.Copy: _copy,
    fx.File: _file,
    fx.Directory: _directory,
    fx.Link: _link,
    fx.Permissions: _permissions,
    fx.Nss: _nss,
}
