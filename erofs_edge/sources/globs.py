# SPDX-License-Identifier: Apache-2.0
"""Globs of absolute paths: which paths they match, and how they filter a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from erofs_edge.errors import ManifestError
from erofs_edge.globs import glob_regex
from erofs_edge.tree import FileTree, Inode

Matcher = Callable[[bytes], bool]


def matcher(patterns: Iterable[str], position: Callable[[int], str | None] = lambda _: None) -> Matcher:
    """A function that tells whether an absolute path matches one of the patterns (whose leading '/' is optional).

    Raises ManifestError at position(index) for an invalid pattern.
    """
    parts = []
    for index, pattern in enumerate(patterns):
        try:
            parts.append(b"(?:%s)" % glob_regex("/" + pattern.strip("/")))
        except ValueError as error:
            raise ManifestError(f"bad glob {pattern!r}: {error}", where=position(index)) from error
    if not parts:
        return lambda _: False
    compiled = re.compile(b"|".join(parts), re.S)
    return lambda path: compiled.fullmatch(path) is not None


def idle(tree: FileTree, patterns: Sequence[str]) -> list[int]:
    """Places of the patterns that match no path of the tree. Raises ManifestError for an invalid one."""
    waiting = {index: matcher([pattern]) for index, pattern in enumerate(patterns)}
    for path, _ in tree.walk() if waiting else ():
        for index in [index for index, matches in waiting.items() if matches(path)]:
            del waiting[index]
        if not waiting:
            break
    return sorted(waiting)


def sift(tree: FileTree, exclude: Matcher, keep: Matcher) -> int:
    """Remove what `exclude` matches, with everything below it, except what `keep` matches; return how many names were
    removed.

    A matching directory stays if something below it is kept.
    """
    return _sift(tree.root, b"", exclude, keep, False)


def _sift(node: Inode, prefix: bytes, exclude: Matcher, keep: Matcher, dropping: bool) -> int:
    gone = 0
    for name, child in list(node.children.items()):
        path = prefix + b"/" + name
        if keep(path):
            continue
        drop = dropping or exclude(path)
        if child.is_dir:
            gone += _sift(child, path, exclude, keep, drop)
        if drop and not child.children:
            del node.children[name]
            gone += 1
    return gone
