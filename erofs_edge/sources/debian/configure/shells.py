# SPDX-License-Identifier: Apache-2.0
"""/etc/shells from debianutils' list and the packages' lists, as update-shells merges them on a fresh system."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator

from erofs_edge.tree import BytesContent, FileTree, Inode

TEMPLATE = "usr/share/debianutils/shells"
PACKAGED = "usr/share/debianutils/shells.d"
PATH = "etc/shells"


def update_shells(tree: FileTree) -> None:
    """The template with its comments, followed by each packaged shell and its real path unless listed already."""
    template = tree.get(TEMPLATE, follow=True)
    if template is None or tree.get(PATH) is not None:
        return
    lines = template.read().decode().splitlines()
    known = {line.partition("#")[0] for line in lines}
    for shell in _packaged(tree, lines):
        if shell not in known:
            known.add(shell)
            lines.append(shell)
    content = BytesContent("".join(line + "\n" for line in lines).encode())
    tree.add(PATH, Inode(stat.S_IFREG | 0o644, content=content, origin="debianutils"))


def _packaged(tree: FileTree, template: list[str]) -> Iterator[str]:
    folder = tree.get(PACKAGED, follow=True)
    lists = [template]
    for _, node in sorted(folder.children.items()) if folder is not None else ():
        if node.is_file:
            lists.append(node.read().decode().splitlines())
    for line in (line.partition("#")[0] for lines in lists for line in lines):
        if line:
            yield line
            yield posixpath.join(_real(tree, posixpath.dirname(line)), posixpath.basename(line))


def _real(tree: FileTree, directory: str) -> str:
    """A path with a leading directory symlink (/bin → usr/bin) resolved, which is enough for the usr-merge."""
    node = tree.get(directory)
    return posixpath.normpath(posixpath.join("/", os.fsdecode(node.target))) if node and node.is_symlink else directory
