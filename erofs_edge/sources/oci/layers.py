# SPDX-License-Identifier: Apache-2.0
"""Lay image layers over each other: OCI image-spec, layer.md ("Applying Changesets", "Whiteouts").

A layer's whiteouts only remove what is in lower layers. A file replaces whatever is there; a directory that meets a
directory changes its metadata. Symlinks in paths are followed inside the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.sources.tar import directory_of, inode_of
from erofs_edge.sources.tarball import Member
from erofs_edge.tree import FileTree, Inode

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
META = b".wh..wh."
"""names that AUFS reserved; those other than the opaque marker mean nothing"""


def apply_layer(tree: FileTree, members: Iterable[Member], archive: Path, where: str) -> None:
    """Lay the members of one layer over the tree; their contents are in the file `archive`.

    Raises SourceError naming a member that occurs twice, is an invalid whiteout, has a path through a file, or is a
    hard link to something that does not exist.
    """
    files = []
    for member in members:
        name = member.path.rpartition(b"/")[2]
        if not name.startswith(WHITEOUT):
            files.append(member)
            continue
        try:
            _white_out(tree, member.path, name)
        except SourceError as error:
            raise _at(member, error, where) from error
    made: set[bytes] = set()
    for member in files:
        try:
            _put(tree, member, archive, where, made)
        except SourceError as error:
            raise _at(member, error, where) from error


def _white_out(tree: FileTree, path: bytes, name: bytes) -> None:
    hidden = name.removeprefix(WHITEOUT)
    if hidden in (b"", b".", b".."):
        raise SourceError("a whiteout of nothing")
    parent = tree.get(path.rpartition(b"/")[0], follow=True)
    if parent is None or not parent.is_dir:
        return
    if name == OPAQUE:
        parent.children.clear()
    elif not name.startswith(META):
        parent.children.pop(hidden, None)


def _put(tree: FileTree, member: Member, archive: Path, where: str, made: set[bytes]) -> None:
    inode = inode_of(member, archive, where) if member.mode else _target(tree, member.link)
    if not member.path:
        tree.add(b"", inode)
        return
    parent = directory_of(tree, member.path, where)
    name = member.path.rpartition(b"/")[2]
    before = parent.children.get(name)
    both = before is not None and before.is_dir and inode.is_dir
    if member.path in made and not both:
        raise SourceError("comes twice")
    made.add(member.path)
    if both and before is not None:
        inode.children = before.children
    parent.children[name] = inode


def _target(tree: FileTree, link: bytes) -> Inode:
    """The file that a hard link refers to, in this layer or a lower one. The last name may itself be a symlink."""
    folder, _, name = link.rpartition(b"/")
    parent = tree.get(folder, follow=True)
    found = parent.children.get(name) if parent is not None else None
    if found is None or found.is_dir:
        raise SourceError(f"hard link to {os.fsdecode(link)!r}, which is no earlier file")
    return found


def _at(member: Member, error: SourceError, where: str) -> SourceError:
    return SourceError(f"member {os.fsdecode(member.path)!r}: {error}", where=where)
