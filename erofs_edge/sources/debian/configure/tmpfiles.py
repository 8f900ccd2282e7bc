# SPDX-License-Identifier: Apache-2.0
"""tmpfiles.d(5) at build time: lines about the read-only part of the system are applied to the tree.

/dev, /proc, /run, /sys, /tmp and /var are created by the running system, and lines about them are left to it. So are
lines with specifiers that only a running system knows (%m, %b, …), credentials ('^'), ACLs and file attributes.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.accounts import Accounts
from erofs_edge.sources.debian.configure.apply import owner_ids
from erofs_edge.sources.debian.configure.confd import drop_in_lines, fields
from erofs_edge.tree import BytesContent, FileTree, Inode

AT_BOOT = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var")
DIRECTORIES = "dDvqQe"
IGNORED = "xXrR"
"""clean-up rules, and removals: there is nothing to remove yet"""
ATTRIBUTES = "hHaAtT"
"""file attributes, ACLs, xattrs"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `flags` are the characters after the type; empty strings stand for '-'."""

    kind: str
    flags: str
    path: str
    mode: str
    user: str
    group: str
    argument: str
    where: str


def read_tmpfiles(tree: FileTree) -> Iterator[Entry]:
    """All lines of a tree, in systemd-tmpfiles' order."""
    for line in drop_in_lines(tree, "tmpfiles.d"):
        kind, path, mode, user, group, _age, argument = fields(line, 7)
        if not kind or not path.startswith("/"):
            if "%" in path:
                continue
            raise SourceError(f"bad line {line.text!r}", where=line.where)
        yield Entry(kind[0], kind[1:], path.rstrip("/") or "/", mode, user, group, argument, line.where)


def apply_tmpfiles(tree: FileTree, accounts: Accounts) -> list[str]:
    """Apply lines about the read-only part; return those that cannot be applied here, except for credentials, which
    systemd's own lines offer to every system."""
    left = []
    entries = [e for e in read_tmpfiles(tree) if not _at_boot(e.path)]
    for entry in sorted(entries, key=lambda e: (e.kind in "zZm", e.path.count("/") if e.kind in DIRECTORIES else 99)):
        if "^" in entry.flags or entry.kind in IGNORED:
            continue
        if entry.kind in ATTRIBUTES or _has_specifier(entry):
            left.append(f"{entry.where}: {entry.kind}{entry.flags} {entry.path}")
        else:
            _apply(tree, entry, accounts)
    return left


def _at_boot(path: str) -> bool:
    return any(path == top or path.startswith(top + "/") for top in AT_BOOT)


def _has_specifier(entry: Entry) -> bool:
    return re.search(r"%[^%]", entry.path + entry.argument) is not None


def _apply(tree: FileTree, entry: Entry, accounts: Accounts) -> None:
    path, argument = entry.path.replace("%%", "%"), entry.argument.replace("%%", "%")
    if entry.kind in "zZm":
        for node in _matching(tree, path, recursive=entry.kind == "Z"):
            _set_permissions(node, entry, accounts)
        return
    old = tree.get(path)
    if entry.kind in DIRECTORIES:
        if old is None and entry.kind != "e":
            old = tree.add(path, Inode(stat.S_IFDIR | 0o755, origin=entry.where))
            _set_permissions(old, entry, accounts)
        elif old is not None and old.is_dir:
            _set_permissions(old, entry, accounts)
    elif entry.kind == "L":
        _link(tree, entry, path, argument or f"/usr/share/factory{path}")
    elif entry.kind in "fFw":
        _file(tree, entry, path, argument, accounts)
    elif entry.kind == "C":
        if old is None and (source := tree.get(argument or f"usr/share/factory{path}", follow=True)) is not None:
            _set_permissions(_copy(tree, source, path, entry.where), entry, accounts)
    elif entry.kind in "pbc":
        if old is None:
            _set_permissions(tree.add(path, _special(entry, argument)), entry, accounts)
    else:
        raise SourceError(f"unknown kind of line {entry.kind!r}", where=entry.where)


def _link(tree: FileTree, entry: Entry, path: str, target: str) -> None:
    old = tree.get(path)
    if "?" in entry.flags and tree.get(posixpath.join(posixpath.dirname(path), target), follow=True) is None:
        return
    if old is not None and "+" not in entry.flags:
        return
    if old is not None and old.is_dir:
        tree.remove(path)
    tree.add(path, Inode(stat.S_IFLNK | 0o777, target=target.encode(), origin=entry.where))


def _file(tree: FileTree, entry: Entry, path: str, argument: str, accounts: Accounts) -> None:
    node = tree.get(path)
    truncate = "+" in entry.flags or entry.kind == "F"
    content = BytesContent(argument.encode("utf-8", "surrogateescape"))
    if node is None:
        if entry.kind == "w":
            return
        node = tree.add(path, Inode(stat.S_IFREG | 0o644, content=content, origin=entry.where))
    elif not node.is_file:
        return
    elif entry.kind == "w":
        node.content = BytesContent(node.read() + content.data) if "+" in entry.flags else content
    elif truncate:
        node.content = content
    _set_permissions(node, entry, accounts)


def _copy(tree: FileTree, source: Inode, path: str, origin: str) -> Inode:
    """Copy the source and everything below it to another path, as new inodes."""
    top = tree.add(path, _clone(source, origin))
    for below, node in list(FileTree(source).walk()) if source.is_dir else []:
        if below != b"/":
            tree.add(path.encode() + below, _clone(node, origin))
    return top


def _clone(node: Inode, origin: str) -> Inode:
    return Inode(
        node.mode,
        node.uid,
        node.gid,
        node.mtime_ns,
        node.rdev,
        node.target,
        node.content,
        dict(node.xattrs),
        {},
        origin,
    )


def _special(entry: Entry, argument: str) -> Inode:
    if entry.kind == "p":
        return Inode(stat.S_IFIFO | 0o644, origin=entry.where)
    major, _, minor = argument.partition(":")
    if not re.fullmatch("[0-9]{1,7}:[0-9]{1,7}", argument):
        raise SourceError(f"bad device number {argument!r}", where=entry.where)
    kind = stat.S_IFCHR if entry.kind == "c" else stat.S_IFBLK
    return Inode(kind | 0o644, rdev=(int(major), int(minor)), origin=entry.where)


def _matching(tree: FileTree, pattern: str, *, recursive: bool) -> Iterator[Inode]:
    """Nodes whose path matches a glob ('*' does not match '/'), with everything below them if `recursive`."""
    parts = [p.encode() for p in pattern.split("/") if p]
    found = [tree.root]
    for part in parts:
        found = [
            child
            for node in found
            for name, child in sorted(node.children.items())
            if fnmatch.fnmatchcase(name.decode("latin-1"), part.decode("latin-1"))
        ]
    for node in found:
        yield from (child for _, child in FileTree(node).walk()) if recursive and node.is_dir else (node,)


def _set_permissions(node: Inode, entry: Entry, accounts: Accounts) -> None:
    """Set mode, user and group if given in the line; '~' masks the mode, ':' applies to new files only."""
    if node.is_symlink:
        return
    user, group = entry.user.lstrip(":"), entry.group.lstrip(":")
    if user:
        node.uid = owner_ids(accounts, user, entry.where)[0]
    if group:
        node.gid = owner_ids(accounts, f"0:{group}", entry.where)[1]
    text = entry.mode.lstrip(":")
    if text:
        if not re.fullmatch(r"~?[0-7]{1,5}", text):
            raise SourceError(f"bad mode {text!r}", where=entry.where)
        mode = int(text.lstrip("~"), 8) & 0o7777
        if text.startswith("~"):
            mode = _masked(node, mode)
        node.mode = stat.S_IFMT(node.mode) | mode


def _masked(node: Inode, mode: int) -> int:
    """tmpfiles.d(5): rights that nobody had before are not granted, and set-id bits only to directories."""
    before = stat.S_IMODE(node.mode)
    for bits in (0o444, 0o222, 0o111):
        if not before & bits:
            mode &= ~bits
    if not node.is_dir:
        mode &= ~0o7000
    return mode
