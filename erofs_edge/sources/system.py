# SPDX-License-Identifier: Apache-2.0
"""Everything in a system partition, from a manifest and its lock.

Later layers win: packages, what their configuration makes, sources, overlays, entries; then the units; then what the
manifest leaves out goes. Directories that are there already keep their owner and mode.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Entry, Lock, Overlay, System, mode_bits
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import Report, complete_accounts, configure, finish
from erofs_edge.sources.debian.configure.accounts import Accounts, base_accounts
from erofs_edge.sources.debian.configure.alternatives import drop_dangling
from erofs_edge.sources.debian.configure.apply import owner_ids
from erofs_edge.sources.debian.configure.database import write_database
from erofs_edge.sources.debian.configure.var import move_var
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.directory import read_directory
from erofs_edge.sources.globs import matcher, sift
from erofs_edge.sources.registry import load_source
from erofs_edge.tree import BytesContent, FileTree, Inode

KINDS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class SystemTree:
    """The files of a system partition, and what should be known of how they came about."""

    tree: FileTree
    report: Report


@dataclass(frozen=True, slots=True)
class _Owned:
    """Inodes that wait for their owner: names have numbers only when all accounts are known."""

    inodes: list[Inode]
    owner: str
    pointer: str


def system_tree(loaded: Loaded[System], lock: Lock, debs: dict[str, Path], cache: Cache) -> SystemTree:
    """The content of a system partition. `debs` are the lock's packages, name → file.

    Raises ManifestError with a position for what the manifest says wrongly, SourceError for damaged inputs.
    """
    system = loaded.value
    packages = read_debs(debs, cache)
    tree = unpack(packages)
    report = Report()
    if packages:
        report = configure(tree, packages, system, lock.users, lock.groups, epoch=lock.date, position=loaded.position)
    for index, source in enumerate(system.sources):
        _lay(loaded, f"sources.{index}", tree, load_source(source, cache), source.to)
    owned = [_lay_overlay(loaded, f"overlay.{i}", tree, overlay) for i, overlay in enumerate(system.overlay)]
    owned += [o for i, entry in enumerate(system.entries) for o in _set_entry(loaded, f"entries.{i}", tree, entry)]
    accounts = base_accounts(tree)
    if packages or system.users or system.groups:
        pins = (lock.users, lock.groups)
        accounts = complete_accounts(tree, packages, system, *pins, epoch=lock.date, position=loaded.position)
    for item in owned:
        _give(loaded, item, accounts)
    finish(tree, system, accounts, report, position=loaded.position)
    exclude = matcher(system.exclude, lambda i: loaded.position(f"exclude.{i}"))
    sift(tree, exclude, matcher(system.keep, lambda i: loaded.position(f"keep.{i}")))
    if packages:
        drop_dangling(tree)
        write_database(tree, packages, system.arch)
        move_var(tree)
    return SystemTree(tree, report)


def _lay(loaded: Loaded[System], pointer: str, tree: FileTree, layer: FileTree, to: str) -> list[Inode]:
    """Put a layer over the tree, below `to`; the layer's inodes that are new there."""
    laid = []
    base = to.rstrip("/").encode()
    for path, inode in layer.walk():
        place = base + (path if path != b"/" else b"")
        here = tree.get(place, follow=True) if inode.is_dir else None
        if not place or (here is not None and here.is_dir):
            continue
        if here is not None:
            raise loaded.error(pointer, f"a directory would replace the file {os.fsdecode(place)} of {here.origin}")
        copy = inode
        if inode.is_dir:
            copy = Inode(inode.mode, inode.uid, inode.gid, inode.mtime_ns, xattrs=dict(inode.xattrs))
        copy.origin = copy.origin or loaded.position(pointer)
        try:
            laid.append(tree.add(place, copy))
        except SourceError as error:
            raise loaded.error(pointer, f"{error.message} ({error.where})") from error
    return laid


def _lay_overlay(loaded: Loaded[System], pointer: str, tree: FileTree, overlay: Overlay) -> _Owned:
    where = loaded.position(pointer)
    layer = read_directory(
        Path(overlay.from_),
        file_mode=mode_bits(overlay.file_mode),
        dir_mode=mode_bits(overlay.dir_mode),
        executable=matcher(overlay.executable, lambda i: loaded.position(f"{pointer}.executable.{i}")),
        origin=where,
    )
    return _Owned(_lay(loaded, pointer, tree, layer, overlay.to), overlay.owner, f"{pointer}.owner")


def _set_entry(loaded: Loaded[System], pointer: str, tree: FileTree, entry: Entry) -> Iterator[_Owned]:
    """Make or change one path."""
    old = tree.get(entry.path)
    kind = KINDS[entry.type]
    changes_only = entry.type == "file" and entry.text is None
    if old is not None and entry.type in ("file", "directory") and old.is_symlink and entry.text is None:
        old = tree.get(entry.path, follow=True)
    if changes_only and old is None:
        raise loaded.error(
            f"{pointer}.path", f"nothing at {entry.path} to change", hint='`text: ""` makes an empty file'
        )
    same = old is not None and stat.S_IFMT(old.mode) == kind and entry.type in ("file", "directory")
    if changes_only and not same:
        raise loaded.error(f"{pointer}.path", f"{entry.path} is not a regular file", hint="say its `type`")
    node = old if same and old is not None else _new(loaded, pointer, tree, entry)
    if entry.text is not None:
        node.content = BytesContent(entry.text.encode())
    if entry.mode is not None:
        node.mode = stat.S_IFMT(node.mode) | mode_bits(entry.mode)
    for name, value in entry.xattrs.items():
        node.xattrs[name.encode()] = _xattr(loaded, f"{pointer}.xattrs.{name}", value)
    if entry.owner is not None:
        yield _Owned([node], entry.owner, f"{pointer}.owner")


def _new(loaded: Loaded[System], pointer: str, tree: FileTree, entry: Entry) -> Inode:
    defaults = {"directory": 0o755, "symlink": 0o777, "char": 0o600, "block": 0o600}
    node = Inode(KINDS[entry.type] | defaults.get(entry.type, 0o644), origin=loaded.position(pointer))
    if entry.target is not None:
        node.target = entry.target.encode()
    if entry.rdev is not None:
        major, _, minor = entry.rdev.partition(":")
        node.rdev = (int(major), int(minor))
    try:
        return tree.add(entry.path, node)
    except SourceError as error:
        raise loaded.error(f"{pointer}.path", f"{error.message} ({error.where})") from error


def _xattr(loaded: Loaded[System], pointer: str, value: str) -> bytes:
    """Text, or as getfattr writes it: 0x… hexadecimal, 0s… base64."""
    try:
        if value.startswith("0x"):
            return bytes.fromhex(value[2:])
        if value.startswith("0s"):
            return base64.b64decode(value[2:], validate=True)
    except (ValueError, binascii.Error) as error:
        raise loaded.error(pointer, f"bad value {value!r}: {error}") from error
    return value.encode()


def _give(loaded: Loaded[System], item: _Owned, accounts: Accounts) -> None:
    try:
        uid, gid = owner_ids(accounts, item.owner, "")
    except SourceError as error:
        raise ManifestError(
            error.message, where=loaded.position(item.pointer), hint="name it under `users:` or `groups:`"
        ) from error
    for inode in item.inodes:
        inode.uid, inode.gid = uid, gid
