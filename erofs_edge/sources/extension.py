# SPDX-License-Identifier: Apache-2.0
"""The files of images that are not whole systems: extensions of a system, and services with their own root.

Requirements are systemd's: systemd-sysext(8), portablectl(1), os-release(5). The packages of an extension are unpacked
without those that its host has; effects of their scripts are not applied, since they would belong to the host.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Lock, System
from erofs_edge.names import fsdecode
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import base_accounts
from erofs_edge.sources.debian.configure.units import enable, find_unit
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.layers import lay_sources, pins_of
from erofs_edge.sources.overlay import lay_overlay
from erofs_edge.sources.system import give, leave_out, set_entry, system_tree
from erofs_edge.tree import BytesContent, FileTree, Inode

HIERARCHIES = {"sysext": (b"usr", b"opt"), "confext": (b"etc",)}
"""what systemd merges; an image with anything else besides could not deliver it"""
RELEASES = {"bookworm": "12", "trixie": "13", "forky": "14"}
RELEASE_FILE = {"sysext": "usr/lib/extension-release.d", "confext": "etc/extension-release.d"}
ROOT_DIRECTORIES = ("dev", "proc", "run", "sys", "tmp", "var/tmp")
ROOT_FILES = ("etc/machine-id", "etc/resolv.conf")
"""files over which the host's are mounted"""


@dataclass(frozen=True, slots=True)
class ExtensionTree:
    """The files, and what a package or the manifest had that such an image cannot contain."""

    tree: FileTree
    notes: list[str] = field(default_factory=list)


def extension_tree(
    loaded: Loaded[System], lock: Lock, debs: dict[str, Path], cache: Cache, host: Iterable[str] = ()
) -> ExtensionTree:
    """The content of an image of the manifest's kind. `host` names the packages of the system that it extends.

    Raises ManifestError with a position for mistakes in the manifest, SourceError for damaged inputs.
    """
    if loaded.value.kind in HIERARCHIES:
        known = frozenset(host)
        own = {name: path for name, path in debs.items() if name not in known}
        return _extension(loaded, lock, own, cache)
    tree = system_tree(loaded, lock, debs, cache).tree
    _complete_root(loaded, tree)
    return ExtensionTree(tree)


def _extension(loaded: Loaded[System], lock: Lock, debs: dict[str, Path], cache: Cache) -> ExtensionTree:
    system = loaded.value
    tree = unpack(read_debs(debs, cache))
    owned = lay_sources(loaded, pins_of(loaded, lock.sources)[1], tree, cache)
    idle: list[str] = []
    for i, overlay in enumerate(system.overlay):
        laid, unmatched = lay_overlay(loaded, i, tree, overlay)
        owned += laid
        idle += unmatched
    owned += [o for i, entry in enumerate(system.entries) for o in set_entry(loaded, f"entries.{i}", tree, entry)]
    accounts = base_accounts(tree)
    for item in owned:
        give(loaded, item, accounts)
    _enable_units(loaded, tree)
    notes = [f"{one} matches nothing" for one in idle + leave_out(loaded, tree)]
    notes += _keep_hierarchies(system, tree)
    if not any(node.children for node in tree.root.children.values()):
        raise loaded.error("kind", f"a {system.kind} with nothing below {_names(system)}")
    folder, name = RELEASE_FILE[system.kind], system.system
    _add(tree, f"{folder}/extension-release.{name}", _release(system, bool(debs), tree))
    return ExtensionTree(tree, notes)


def _release(system: System, packages: bool, tree: FileTree) -> str:
    """The systems that the extension fits: any, or those of its packages' release and architecture."""
    lines = ["ID=debian", f"VERSION_ID={RELEASES.get(system.suite, system.suite)}"] if packages else ["ID=_any"]
    lines += [f"ARCHITECTURE={system.arch}"] if packages else []
    if any(tree.get(f"{top}/systemd/system") is not None for top in ("usr/lib", "etc")):
        lines.append("EXTENSION_RELOAD_MANAGER=1")
    return "".join(f"{line}\n" for line in lines)


def _enable_units(loaded: Loaded[System], tree: FileTree) -> None:
    """Apply `units.enable` by links, if they are in the extension's own hierarchy."""
    for index, unit in enumerate(loaded.value.units.enable):
        if find_unit(tree, unit) is None:
            raise loaded.error(f"units.enable.{index}", f"no unit {unit!r} in the extension")
        enable(tree, unit)
    links = tree.get("etc/systemd/system")
    if loaded.value.kind == "sysext" and links is not None:
        for path, inode in FileTree(links).walk():
            if inode.is_symlink:
                tree.add(b"usr/lib/systemd/system" + path, inode)
        tree.remove("etc/systemd/system")


def _keep_hierarchies(system: System, tree: FileTree) -> list[str]:
    """Remove what systemd would not merge, with one note."""
    lost = [
        fsdecode(path)
        for path, inode in tree.walk()
        if not inode.is_dir and path.split(b"/")[1] not in HIERARCHIES[system.kind]
    ]
    for name in list(tree.root.children):
        if name not in HIERARCHIES[system.kind]:
            del tree.root.children[name]
    if not lost:
        return []
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return [f"a {system.kind} holds only {_names(system)}: left out are {', '.join(lost[:3])}{more}"]


def _names(system: System) -> str:
    return " and ".join(f"/{name.decode()}" for name in HIERARCHIES[system.kind])


def _complete_root(loaded: Loaded[System], tree: FileTree) -> None:
    """Add what a service with its own root needs there."""
    system = loaded.value
    release = tree.get("usr/lib/os-release") or tree.get("etc/os-release")
    if release is None:
        raise loaded.error(
            "kind",
            f"a {system.kind} needs /usr/lib/os-release",
            hint="base-files brings it, or write it with `entries`",
        )
    for name in ROOT_DIRECTORIES:
        tree.directory(name, origin="mount points")
    for name in ROOT_FILES:
        if tree.get(name) is None or tree.get(name, follow=True) is None:
            tree.remove(name)
            _add(tree, name, "")
    if system.kind == "portable":
        units = tree.get("usr/lib/systemd/system")
        own = [name for name in (units.children if units is not None else ()) if _prefixed(name, system.system)]
        if not own:
            where = "/usr/lib/systemd/system"
            raise loaded.error("system", f"no unit in {where} has a name that starts with {system.system}")
        if release.is_file:
            text = release.read().decode("utf-8", "replace").rstrip("\n")
            release.content = BytesContent(f"{text}\nPORTABLE_PREFIXES={system.system}\n".encode())


def _prefixed(name: bytes, prefix: str) -> bool:
    """portablectl's rule: the prefix itself, or followed by one of - . @"""
    rest = fsdecode(name).removeprefix(prefix)
    return fsdecode(name).startswith(prefix) and rest[:1] in ("-", ".", "@")


def _add(tree: FileTree, path: str, text: str) -> None:
    content = BytesContent(text.encode())
    tree.add(path, Inode(stat.S_IFREG | 0o644, content=content, origin="kind of the manifest"))
