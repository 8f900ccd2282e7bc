# SPDX-License-Identifier: Apache-2.0
"""What a manifest leaves out by kind (`drop:`, `firmware:`) instead of by path."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import System
from erofs_edge.names import fsdecode, fsencode
from erofs_edge.sources.debian.configure.ids import Position
from erofs_edge.sources.globs import matcher
from erofs_edge.tree import FileTree, Inode

KINDS: dict[str, tuple[str, ...]] = {
    "doc": ("/usr/share/doc/*/**", "/usr/share/doc-base/**"),
    "info": ("/usr/share/info/**",),
    "lintian": ("/usr/share/lintian/**",),
    "locale": ("/usr/share/locale/**",),
    "man": ("/usr/share/man/**",),
}
KEPT: dict[str, tuple[str, ...]] = {"doc": ("/usr/share/doc/*/copyright",)}
"""files of a dropped kind that stay: licences require their texts"""
FIRMWARE = "usr/lib/firmware"


def drop_globs(system: System) -> tuple[list[str], list[str]]:
    """(globs left out, globs kept) for `drop` and `locales`."""
    out = [glob for kind in system.drop for glob in KINDS[kind]]
    kept = [glob for kind in system.drop for glob in KEPT.get(kind, ())]
    for language in system.locales:
        kept += [f"/usr/share/locale/{language}", f"/usr/share/locale/{language}/**"]
    return out, kept


def select_firmware(tree: FileTree, globs: list[str], position: Position = str) -> None:
    """Keep in /usr/lib/firmware only what the globs match, and the targets of links among that.

    Raises ManifestError, with its position, for a glob that matches nothing.
    """
    top = tree.get(FIRMWARE)
    if top is None or not top.is_dir:
        if globs:
            raise ManifestError(
                "none of the packages contains firmware", where=position("firmware"), hint="add one to `packages`"
            )
        return
    names = _firmware_files(top)
    keep: set[bytes] = set()
    for index, glob in enumerate(globs):
        matches = matcher([glob], lambda _, index=index: position(f"firmware.{index}"))  # type: ignore[misc]
        found = {path for path in names if matches(path)}
        if not found:
            raise ManifestError(f"no firmware matches {glob!r}", where=position(f"firmware.{index}"))
        keep |= found
    _keep_firmware(tree, top, names, keep)


def firmware_of_modules(tree: FileTree, wanted: Iterable[str], also: Iterable[str]) -> list[str]:
    """Keep in /usr/lib/firmware only what modules request, by their own names for it (modinfo -F firmware; some are
    globs), what the globs of a manifest match, and the targets of links among that. Returns the names without a file,
    sorted.

    Firmware may be compressed, as in NAME.xz (drivers/base/firmware_loader of the kernel).
    """
    top = tree.get(FIRMWARE)
    if top is None or not top.is_dir:
        return sorted(set(wanted))
    names, keep, missing = _firmware_files(top), set[bytes](), []
    for name in sorted(set(wanted)):
        pattern = name if name.startswith("/") else f"/{name}"
        found = {path for path in names if _is_firmware(fsdecode(path), pattern)}
        keep |= found
        if not found:
            missing.append(name)
    matches = matcher(list(also), str)
    _keep_firmware(tree, top, names, keep | {path for path in names if matches(path)})
    return missing


def _is_firmware(path: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern + suffix) for suffix in ("", ".xz", ".zst"))


def _firmware_files(top: Inode) -> list[bytes]:
    return [path for path, inode in FileTree(top).walk() if not inode.is_dir]


def _keep_firmware(tree: FileTree, top: Inode, names: list[bytes], keep: set[bytes]) -> None:
    """Drop everything but `keep` and the targets of its links."""
    todo = list(keep)
    while todo:
        path = todo.pop()
        inode = FileTree(top).get(path)
        if inode is not None and inode.is_symlink:
            target = fsencode(posixpath.normpath(posixpath.join(posixpath.dirname(path), inode.target)))
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
