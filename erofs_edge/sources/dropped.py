# SPDX-License-Identifier: Apache-2.0
"""What a manifest leaves out by kind (`drop:`, `firmware:`) instead of by path."""

from __future__ import annotations

import os
import posixpath

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import System
from erofs_edge.sources.debian.configure.ids import Position
from erofs_edge.sources.globs import matcher
from erofs_edge.tree import FileTree

KINDS: dict[str, tuple[str, ...]] = {
    "doc": ("/usr/share/doc/*/**", "/usr/share/doc-base/**"),
    "info": ("/usr/share/info/**",),
    "lintian": ("/usr/share/lintian/**",),
    "locale": ("/usr/share/locale/**",),
    "man": ("/usr/share/man/**",),
}
KEPT: dict[str, tuple[str, ...]] = {"doc": ("/usr/share/doc/*/copyright",)}
"""of a kind that is dropped: the licences ask for their texts"""
FIRMWARE = "usr/lib/firmware"


def drop_globs(system: System) -> tuple[list[str], list[str]]:
    """(globs left out, globs kept) of `drop` and `locales`."""
    out = [glob for kind in system.drop for glob in KINDS[kind]]
    kept = [glob for kind in system.drop for glob in KEPT.get(kind, ())]
    for language in system.locales:
        kept += [f"/usr/share/locale/{language}", f"/usr/share/locale/{language}/**"]
    return out, kept


def select_firmware(tree: FileTree, globs: list[str], position: Position = str) -> None:
    """Leave in /usr/lib/firmware what the globs name, and what links among that lead to.

    Raises ManifestError, with its position, for a glob that names nothing.
    """
    top = tree.get(FIRMWARE)
    if top is None or not top.is_dir:
        if globs:
            raise ManifestError("no package brings firmware", where=position("firmware"), hint="name one in `packages`")
        return
    names = [path for path, inode in FileTree(top).walk() if not inode.is_dir]
    keep: set[bytes] = set()
    for index, glob in enumerate(globs):
        matches = matcher([glob], lambda _, index=index: position(f"firmware.{index}"))  # type: ignore[misc]
        found = {path for path in names if matches(path)}
        if not found:
            raise ManifestError(f"no firmware is called {glob!r}", where=position(f"firmware.{index}"))
        keep |= found
    todo = list(keep)
    while todo:
        path = todo.pop()
        inode = FileTree(top).get(path)
        if inode is not None and inode.is_symlink:
            target = os.fsencode(posixpath.normpath(posixpath.join(posixpath.dirname(path), inode.target)))
            below = target.removeprefix(b"/" + FIRMWARE.encode())
            if below in names and below not in keep:
                keep.add(below)
                todo.append(below)
    FileTree(top).prune(lambda path, inode: not inode.is_dir and path not in keep)
    _drop_empty(tree)


def _drop_empty(tree: FileTree) -> None:
    top = tree.get(FIRMWARE)
    for path, inode in reversed(list(FileTree(top).walk()) if top is not None else []):
        if inode.is_dir and not inode.children and path != b"/":
            tree.remove(FIRMWARE.encode() + path)
