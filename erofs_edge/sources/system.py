# SPDX-License-Identifier: Apache-2.0
"""The content of a system partition, from a manifest and its lock.

Later layers win: packages, the results of their configuration, sources, overlays, entries. Then units are enabled, and
what the manifest leaves out is removed. Existing directories keep their owner and mode.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Entry, Lock, System, mode_bits
from erofs_edge.sources.base import has_accounts, installed, keep_installed, lay_over, load_base
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import Ids, Report, adopt, complete_accounts, configure, finish
from erofs_edge.sources.debian.configure.accounts import Accounts, base_accounts
from erofs_edge.sources.debian.configure.alternatives import drop_dangling
from erofs_edge.sources.debian.configure.apply import owner_ids
from erofs_edge.sources.debian.configure.database import write_database
from erofs_edge.sources.debian.configure.effects import recall_table
from erofs_edge.sources.debian.configure.ids import NO_LOGIN_SHELLS, is_person
from erofs_edge.sources.debian.configure.var import move_var
from erofs_edge.sources.debian.deb import Package, read_debs
from erofs_edge.sources.debian.scripted.capture import Scripted
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.dropped import drop_globs, select_firmware
from erofs_edge.sources.globs import idle, matcher, sift
from erofs_edge.sources.layers import lay_sources, pins_of
from erofs_edge.sources.network import apply_network
from erofs_edge.sources.overlay import Owned, lay_overlay, xattr_value
from erofs_edge.sources.smoke import apply_smoke
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
    """The files of a system partition, and notes on how they were made."""

    tree: FileTree
    report: Report


def system_tree(
    loaded: Loaded[System], lock: Lock, debs: dict[str, Path], cache: Cache, scripted: Scripted | None = None
) -> SystemTree:
    """The content of a system partition. `debs` are the lock's packages, name → file; `scripted` is the result of their
    own scripts, if the manifest says `configure: scripts`.

    Raises ManifestError with a position for mistakes in the manifest, SourceError for damaged inputs.
    """
    system = loaded.value
    packages = read_debs(debs, cache)
    if packages:
        recall_table(cache)
    tree, report = configured(loaded, lock, packages, scripted)
    base_pin, source_pins = pins_of(loaded, lock.sources)
    lower, was_installed = frozenset[int](), ""
    if system.base is not None:
        base = load_base(Path(system.base), cache, base_pin)
        lower, was_installed = frozenset(id(inode) for _, inode in base.walk()), installed(base)
        tree = lay_over(base, tree)
    owned = lay_sources(loaded, source_pins, tree, cache, lower)
    # its accounts are complete already, with the numbers in its files
    settled = scripted is not None or ((bool(lower) or not packages) and has_accounts(tree))
    for i, overlay in enumerate(system.overlay):
        laid, unmatched = lay_overlay(loaded, i, tree, overlay)
        owned += laid
        report.unmatched += unmatched
    owned += [o for i, entry in enumerate(system.entries) for o in set_entry(loaded, f"entries.{i}", tree, entry)]
    accounts = base_accounts(tree, configured=settled)
    if packages or system.users or system.groups:
        accounts = complete_accounts(
            tree, packages, system, Ids.of(lock),
            epoch=lock.date, configured=settled, position=loaded.position,
        )  # fmt: skip
    for item in owned:
        give(loaded, item, accounts)
    finish(tree, system, accounts, report, position=loaded.position)
    if system.network is not None:
        apply_network(tree, system.network, loaded.position)
    apply_smoke(tree, system.smoke)
    report.unmatched += leave_out(loaded, tree)
    _check_shells(loaded, accounts, tree)
    if packages:
        drop_dangling(tree)
        write_database(tree, packages, system.arch)
        keep_installed(tree, was_installed)
        move_var(tree)
    for index, path in enumerate(system.writable_etc):
        if tree.get(path) is None:
            raise loaded.error(
                f"writable_etc.{index}",
                f"nothing at {path} that could be made writable",
                hint='make it with `entries`: a directory, or a file with `text: ""`',
            )
    return SystemTree(tree, report)


def configured(
    loaded: Loaded[System], lock: Lock, packages: list[Package], scripted: Scripted | None
) -> tuple[FileTree, Report]:
    """The packages, configured from known effects of their scripts or by the scripts themselves; nothing else of the
    manifest.

    Raises ManifestError if a script's effects are not known and the manifest does not accept that.
    """
    system = loaded.value
    if scripted is not None:
        adopt(scripted.tree, system)
        return scripted.tree, Report(unpinned=scripted.unpinned)
    tree = unpack(packages)
    if not packages:
        return tree, Report()
    report = configure(tree, packages, system, Ids.of(lock), epoch=lock.date, position=loaded.position)
    unknown = [note for note in report.unknown if note.package not in system.harmless_scripts]
    if unknown:
        raise loaded.error(
            "packages",
            f"the effects of these maintainer scripts are unknown: {', '.join(map(str, unknown))}",
            hint="run them in QEMU with `configure: scripts`, or list packages whose scripts can be ignored in"
            " `harmless_scripts`",
        )
    return tree, report


def leave_out(loaded: Loaded[System], tree: FileTree) -> list[str]:
    """Apply `drop`, `exclude`, `keep` and `firmware` of the manifest. Returns globs of `exclude` and `keep` that match
    nothing, with their places."""
    system = loaded.value
    dropped, kept = map(matcher, drop_globs(system))
    exclude = matcher(system.exclude, lambda i: loaded.position(f"exclude.{i}"))
    keep = matcher(system.keep, lambda i: loaded.position(f"keep.{i}"))
    unmatched = [f"{loaded.position(f'exclude.{i}')}: {system.exclude[i]}" for i in idle(tree, system.exclude)]
    unmatched += [f"{loaded.position(f'keep.{i}')}: {system.keep[i]}" for i in idle(tree, system.keep)]
    sift(tree, exclude, keep)
    sift(tree, dropped, lambda path: kept(path) or keep(path))
    if system.firmware is not None:
        select_firmware(tree, system.firmware, loaded.position)
    return unmatched


def _check_shells(loaded: Loaded[System], accounts: Accounts, tree: FileTree) -> None:
    """Raises ManifestError if a user of the manifest who may log in has a shell that does not exist."""
    for name, user in loaded.value.users.items():
        shell = accounts.users[name].shell
        if is_person(user) and shell not in NO_LOGIN_SHELLS and tree.get(shell, follow=True) is None:
            raise loaded.error(
                f"users.{name}.shell",
                f"no {shell} in the system, the login shell of {name!r}",
                hint="add its package to `packages`, or name another `shell`",
            )


def set_entry(loaded: Loaded[System], pointer: str, tree: FileTree, entry: Entry) -> Iterator[Owned]:
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
        raise loaded.error(f"{pointer}.path", f"{entry.path} is not a regular file", hint="give its `type`")
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


def give(loaded: Loaded[System], item: Owned, accounts: Accounts) -> None:
    """Set the owners given by the manifest. Raises ManifestError at the place of an unknown name."""
    try:
        uid, gid = owner_ids(accounts, item.owner, "")
    except SourceError as error:
        raise ManifestError(
            error.message, where=loaded.position(item.pointer), hint="name it under `users:` or `groups:`"
        ) from error
    for inode in item.inodes:
        inode.uid, inode.gid = uid, gid
