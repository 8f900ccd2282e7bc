# SPDX-License-Identifier: Apache-2.0
"""Change a scanned tree like the options of mkfs.erofs: exclusions, owners, hard links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from erofs_edge.errors import UsageError
from erofs_edge.names import fsdecode
from erofs_edge.sources.regex import compile_regex
from erofs_edge.tree import FileTree, Inode, split

_ID_MAX = 0xFFFFFFFE


def first_names(tree: FileTree) -> Iterator[tuple[bytes, Inode]]:
    """(path, inode) of each inode once, under its first name: the root, all names of a directory, then those below."""
    yield b"/", tree.root
    seen = {id(tree.root)}
    stack = [(b"", tree.root)]
    while stack:
        prefix, directory = stack.pop()
        below = []
        for name in sorted(directory.children):
            inode = directory.children[name]
            if id(inode) in seen:
                continue
            seen.add(id(inode))
            yield prefix + b"/" + name, inode
            if inode.is_dir:
                below.append((prefix + b"/" + name, inode))
        stack += reversed(below)


def exclude(tree: FileTree, paths: Iterable[bytes] = (), regexes: Iterable[str] = ()) -> list[str]:
    """Leave out paths, and what matches a POSIX extended expression somewhere in its path (without a leading slash);
    directories with everything below them.

    Returns those that match nothing, as options of mkfs.erofs. Raises UsageError for a bad expression.
    """
    exact = {b"/" + b"/".join(split(path)): path for path in paths}
    patterns = {}
    for regex in regexes:
        try:
            patterns[regex] = compile_regex(regex)
        except ValueError as error:
            raise UsageError(f"--exclude-regex {regex}: {error}") from error
    idle = [
        f"--exclude-path {fsdecode(given)}" for path, given in exact.items() if path == b"/" or tree.get(path) is None
    ]
    idle += [f"--exclude-regex {regex}" for regex in _idle(tree, patterns)]
    tree.prune(lambda path, _: path in exact or any(pattern.search(path[1:]) for pattern in patterns.values()))
    return idle


def _idle(tree: FileTree, patterns: dict[str, re.Pattern[bytes]]) -> list[str]:
    """Those that match no path, nor any path below what others match."""
    idle = dict(patterns)
    for path, _ in tree.walk() if idle else ():
        for found in [regex for regex, pattern in idle.items() if path != b"/" and pattern.search(path[1:])]:
            del idle[found]
        if not idle:
            break
    return list(idle)


def set_owners(
    tree: FileTree, *, uid: int | None = None, gid: int | None = None, uid_offset: int = 0, gid_offset: int = 0
) -> None:
    """Set owners of everything: first replaced, then shifted. Raises UsageError if one exceeds 32 bits."""
    for path, inode in first_names(tree):
        inode.uid = (inode.uid if uid is None else uid) + uid_offset
        inode.gid = (inode.gid if gid is None else gid) + gid_offset
        if not 0 <= inode.uid <= _ID_MAX or not 0 <= inode.gid <= _ID_MAX:
            raise UsageError(
                f"owner {inode.uid}:{inode.gid} is out of range", where=path.decode("utf-8", "backslashreplace")
            )


def split_hard_links(tree: FileTree) -> None:
    """Make every name of a file a file of its own."""
    seen: set[int] = set()
    for _, directory in list(tree.walk()):
        for name in sorted(directory.children):
            inode = directory.children[name]
            if inode.is_dir:
                continue
            if id(inode) in seen:
                inode = directory.children[name] = _copy(inode)
            seen.add(id(inode))


def _copy(inode: Inode) -> Inode:
    return inode.replaced(xattrs=dict(inode.xattrs))
