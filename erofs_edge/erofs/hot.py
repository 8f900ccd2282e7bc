# SPDX-License-Identifier: Apache-2.0
"""What a profile names in a tree: the nodes that go to the front, and the parts of files that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from erofs_edge.erofs.plan import Node
from erofs_edge.erofs.profile import Use
from erofs_edge.tree import FileTree


class Hot(NamedTuple):
    """nodes    what the uses need, in order: directories on the way, symlinks, the file
    missing  number of paths that do not exist
    ranges   if any use is only a part of a file: path of each file used → (start, end, position in the order); else
             empty
    """

    nodes: list[Node]
    missing: int
    ranges: dict[bytes, list[tuple[int, int, int]]]

    def rank(self, path: bytes, start: int, end: int) -> int | None:
        """Return the first position in the order of what overlaps these bytes of a file, None if nothing does."""
        return min((rank for a, b, rank in self.ranges.get(path, ()) if a < end and start < b), default=None)


def find_hot(tree: FileTree, nodes: Iterable[Node], uses: Sequence[Use]) -> Hot:
    """Look up the uses in the tree."""
    by_inode = {id(node.inode): node for node in nodes} if uses else {}
    found: dict[Node, None] = {}
    ends: dict[bytes, Node | None] = {}
    for path in dict.fromkeys(use.path for use in uses):
        last, target = tree.get(path), tree.get(path, follow=True)
        ends[path] = by_inode[id(target)] if target is not None else None
        for inode in (last, target):
            if inode is None:
                continue
            node = by_inode[id(inode)]
            way = [node]
            while way[-1].parent is not None and way[-1].parent is not way[-1]:
                way.append(way[-1].parent)
            found |= dict.fromkeys(reversed(way))
    ranges: dict[bytes, list[tuple[int, int, int]]] = {}
    partial = False
    for rank, use in enumerate(uses):
        end = ends[use.path]
        if end is not None and end.inode.is_file and end.size:
            stop = end.size if use.end is None else min(use.end, end.size)
            partial |= use.start > 0 or stop < end.size
            ranges.setdefault(end.path, []).append((use.start, stop, rank))
    return Hot(list(found), len(missing_paths(tree, uses)), ranges if partial else {})


def missing_paths(tree: FileTree, uses: Sequence[Use]) -> list[bytes]:
    """Return the paths of the uses that do not exist in the tree, in order."""
    paths = dict.fromkeys(use.path for use in uses)
    return [path for path in paths if tree.get(path) is None and tree.get(path, follow=True) is None]
