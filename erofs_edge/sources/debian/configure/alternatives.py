# SPDX-License-Identifier: Apache-2.0
"""Alternatives: apply the `update-alternatives --install` lines in postinst texts without running them.

In automatic mode the highest priority wins, and of equal ones the first installed (packages are ordered by name).
"""

from __future__ import annotations

import posixpath
import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from erofs_edge.sources.debian.deb import Package
from erofs_edge.tree import FileTree, Inode


@dataclass(frozen=True, slots=True)
class Choice:
    """One installed alternative; `links` are (generic link, name, path): the master first, then its slaves."""

    priority: int
    package: str
    links: tuple[tuple[str, str, str], ...]


def parse_alternatives(text: str, package: str) -> list[Choice]:
    """All choices that a script's text installs. Lines with shell variables cannot be interpreted and are skipped."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        start = line.find("update-alternatives ")
        if start < 0 or line.lstrip().startswith("#") or " --install " not in line:
            continue
        try:
            words = shlex.split(line[start:], comments=True)
        except ValueError:
            continue
        choice = _choice(words, package)
        if choice is not None:
            found.append(choice)
    return found


def _choice(words: list[str], package: str) -> Choice | None:
    at = words.index("--install") if "--install" in words else len(words)
    if len(words) < at + 5 or not re.fullmatch(r"-?\d+", words[at + 4]):
        return None
    links = [(words[at + 1], words[at + 2], words[at + 3])]
    rest = words[at + 5 :]
    while len(rest) >= 4 and rest[0] in ("--slave", "--follower"):
        links.append((rest[1], rest[2], rest[3]))
        rest = rest[4:]
    if any("$" in part for link in links for part in link):
        return None
    return Choice(int(words[at + 4]), package, tuple(links))


def apply_alternatives(tree: FileTree, packages: Iterable[Package]) -> None:
    """Make the generic links and those in /etc/alternatives; choices missing from the tree are skipped."""
    best: dict[str, Choice] = {}
    for package in sorted(packages, key=lambda p: p.name):
        for choice in parse_alternatives(package.scripts.get("postinst", b"").decode("utf-8", "replace"), package.name):
            name = choice.links[0][1]
            if tree.get(choice.links[0][2], follow=True) is None:
                continue
            if name not in best or choice.priority > best[name].priority:
                best[name] = choice
    for choice in best.values():
        for link, name, path in choice.links:
            if tree.get(path, follow=True) is not None:
                for place, target in ((f"/etc/alternatives/{name}", path), (link, f"/etc/alternatives/{name}")):
                    symlink = Inode(stat.S_IFLNK | 0o777, target=target.encode(), origin=choice.package)
                    tree.add(place, symlink)


def drop_dangling(tree: FileTree) -> None:
    """Remove alternatives, with their generic links, for files that the manifest leaves out (manual pages)."""
    folder = tree.get("etc/alternatives")
    gone = [n for n, node in folder.children.items() if node.is_symlink and not _resolves(tree, node)] if folder else []
    if not gone or folder is None:
        return
    for name in gone:
        del folder.children[name]
    targets = {b"/etc/alternatives/" + name for name in gone}
    tree.prune(lambda _, node: node.is_symlink and node.target in targets)


def _resolves(tree: FileTree, node: Inode) -> bool:
    return tree.get(posixpath.join(b"/etc/alternatives", node.target), follow=True) is not None
