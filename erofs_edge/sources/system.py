# SPDX-License-Identifier: Apache-2.0
"""Everything in a system partition, from a manifest and its lock.

Later layers win: packages, what their configuration makes, sources, overlays, entries; then the units; then what the
manifest leaves out goes. Directories that are there already keep their owner and mode.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Entry, Lock, System, mode_bits
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import Report, complete_accounts, configure, finish
from erofs_edge.sources.debian.configure.accounts import Accounts, base_accounts
from erofs_edge.sources.debian.configure.alternatives import drop_dangling
from erofs_edge.sources.debian.configure.apply import owner_ids
from erofs_edge.sources.debian.configure.database import write_database
from erofs_edge.sources.debian.configure.var import move_var
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.dropped import drop_globs, select_firmware
from erofs_edge.sources.globs import matcher, sift
from erofs_edge.sources.network import apply_network
from erofs_edge.sources.overlay import Owned, lay, lay_overlay, xattr_value
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
        lay(loaded, f"sources.{index}", tree, load_source(source, cache), source.to)
    owned = [item for i, overlay in enumerate(system.overlay) for item in lay_overlay(loaded, i, tree, overlay)]
    owned += [o for i, entry in enumerate(system.entries) for o in _set_entry(loaded, f"entries.{i}", tree, entry)]
    accounts = base_accounts(tree)
    if packages or system.users or system.groups:
        pins = (lock.users, lock.groups)
        accounts = complete_accounts(tree, packages, system, *pins, epoch=lock.date, position=loaded.position)
    for item in owned:
        _give(loaded, item, accounts)
    finish(tree, system, accounts, report, position=loaded.position)
    if system.network is not None:
        apply_network(tree, system.network, loaded.position)
    _leave_out(loaded, tree)
    if packages:
        drop_dangling(tree)
        write_database(tree, packages, system.arch)
        move_var(tree)
    return SystemTree(tree, report)


def _leave_out(loaded: Loaded[System], tree: FileTree) -> None:
    """`drop`, `exclude`, `keep` and `firmware` of the manifest."""
    system = loaded.value
    dropped, kept = map(matcher, drop_globs(system))
    exclude = matcher(system.exclude, lambda i: loaded.position(f"exclude.{i}"))
    keep = matcher(system.keep, lambda i: loaded.position(f"keep.{i}"))
    sift(tree, exclude, keep)
    sift(tree, dropped, lambda path: kept(path) or keep(path))
    if system.firmware is not None:
        select_firmware(tree, system.firmware, loaded.position)


def _set_entry(loaded: Loaded[System], pointer: str, tree: FileTree, entry: Entry) -> Iterator[Owned]:
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
        node.xattrs[name.encode()] = xattr_value(loaded, f"{pointer}.xattrs.{name}", value)
    if entry.owner is not None:
        yield Owned([node], entry.owner, f"{pointer}.owner")


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


def _give(loaded: Loaded[System], item: Owned, accounts: Accounts) -> None:
    try:
        uid, gid = owner_ids(accounts, item.owner, "")
    except SourceError as error:
        raise ManifestError(
            error.message, where=loaded.position(item.pointer), hint="name it under `users:` or `groups:`"
        ) from error
    for inode in item.inodes:
        inode.uid, inode.gid = uid, gid
