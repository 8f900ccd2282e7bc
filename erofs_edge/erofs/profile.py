# SPDX-License-Identifier: Apache-2.0
"""Profiles of access: which files of a tree are used first, and in which order. docs/layout.md describes the format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.erofs.plan import Node
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileTree

_LINE = re.compile(rb"(?:(\d+)-(\d+)[ \t]+)?(/.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{3}|\\)")


def read_profile(file: Path) -> tuple[bytes, ...]:
    """Its paths in order of first use, each once. Raises SourceError with file and line for what is none."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read the profile: {error.strerror}", where=str(file)) from error
    paths: dict[bytes, None] = {}
    for number, line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or (match[1] and int(match[1]) >= int(match[2])):
            raise SourceError(
                "not a line of a profile",
                where=f"{file}:{number}",
                hint="a path from the root as in /usr/bin/x, or a range of its bytes as in 0-65536 /usr/bin/x",
            )
        paths.setdefault(_ESCAPE.sub(_unescape, match[3]))
    return tuple(paths)


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"\\" if match[1] == b"\\" else bytes([int(match[1], 8) & 0xFF])


def hot_nodes(tree: FileTree, nodes: Iterable[Node], paths: Iterable[bytes]) -> tuple[list[Node], int]:
    """(the nodes that paths need, in order: directories on the way, symlinks, the file; paths that do not exist)."""
    by_inode = {id(node.inode): node for node in nodes}
    found: dict[Node, None] = {}
    missing = 0
    for path in paths:
        ends = (tree.get(path), tree.get(path, follow=True))
        missing += ends == (None, None)
        for inode in ends:
            if inode is None:
                continue
            node = by_inode[id(inode)]
            way = [node]
            while way[-1].parent is not None and way[-1].parent is not way[-1]:
                way.append(way[-1].parent)
            found |= dict.fromkeys(reversed(way))
    return list(found), missing
