# SPDX-License-Identifier: Apache-2.0
"""Unpack packages over each other as dpkg does when it installs them on an empty disk.

base-files comes first (its links /bin, /lib, /sbin → usr/… must exist before anything is put below them), the others
follow by name, so the caller's order does not matter. A directory keeps the metadata of its first package. A file in
two packages is an error unless one says that it replaces the other (deb-control(5), "Replaces"). Conffiles have their
own names.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.debian.version import relations, satisfies
from erofs_edge.sources.tar import directory_of, inode_of
from erofs_edge.sources.tarball import Member
from erofs_edge.tree import FileTree, Inode


def unpack(packages: Iterable[Package]) -> FileTree:
    """The tree of all packages; `origin` of each inode is a package name. Raises SourceError naming both sides of a
    clash, and if a package occurs twice."""
    ordered = sorted(packages, key=lambda package: (package.name != "base-files", package.name))
    by_name = {package.name: package for package in ordered}
    if len(by_name) != len(ordered):
        counts = Counter(package.name for package in ordered)
        twice = [name for name, count in counts.items() if count > 1]
        raise SourceError(f"these packages are listed twice: {', '.join(twice)}")
    tree = FileTree()
    for package in ordered:
        _lay(tree, package, by_name)
    return tree


def _lay(tree: FileTree, package: Package, by_name: dict[str, Package]) -> None:
    seen: dict[bytes, Inode] = {}
    folder, parent = b"", tree.root
    for member in package.members:
        try:
            head, _, name = member.path.rpartition(b"/")
            if head != folder:
                folder, parent = head, directory_of(tree, member.path, package.name)
            inode = _inode(member, package, seen)
            if not member.path:
                _root(tree, inode)
                folder, parent = b"", tree.root
                continue
            old = parent.children.get(name)
            if old is None or _takes_over(old, inode, package, tree=tree, member=member, by_name=by_name):
                parent.children[name] = inode
            seen[member.path] = inode
        except SourceError as error:
            where = f"{package.name} {package.version}: /{os.fsdecode(member.path)}"
            raise SourceError(error.message, where=where, hint=error.hint) from error


def _inode(member: Member, package: Package, seen: dict[bytes, Inode]) -> Inode:
    if member.mode:
        return inode_of(member, package.archive, package.name)
    target = seen.get(member.link)
    if target is None or target.is_dir:
        raise SourceError(f"hard link to /{os.fsdecode(member.link)}, which is no earlier file of the package")
    return target


def _root(tree: FileTree, inode: Inode) -> None:
    if tree.root.origin and inode.is_dir:
        return  # the first package's metadata counts
    tree.add(b"", inode)


def _takes_over(
    old: Inode, new: Inode, package: Package, *, tree: FileTree, member: Member, by_name: dict[str, Package]
) -> bool:
    """Whether the new inode replaces the old one; False keeps the old one. Raises SourceError on a clash."""
    if old.is_dir:
        # dpkg leaves a directory alone if a package has a directory or a symlink there
        if new.is_dir or new.is_symlink:
            return False
        raise SourceError(f"would replace a directory of {old.origin}")
    if new.is_dir and old.is_symlink:
        target = tree.get(member.path, follow=True)
        if target is not None and target.is_dir:
            return False
    owner = by_name.get(old.origin)
    if owner is package:
        raise SourceError("is in the package twice")
    if owner is not None and _replaces(package, owner):
        return True
    if owner is not None and _replaces(owner, package):
        return False
    raise SourceError(
        f"is also in {old.origin}, and neither package replaces the other",
        hint=f"leave {package.name} or {old.origin} out",
    )


def _replaces(one: Package, other: Package) -> bool:
    return any(
        name == other.name and (not relation or satisfies(other.version, relation, bound))
        for name, relation, bound in relations(one.control.get("Replaces", ""))
    )
