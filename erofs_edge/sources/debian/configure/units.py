# SPDX-License-Identifier: Apache-2.0
"""systemd units: which are enabled, and the links requested by [Install] sections.

Debian packages enable their units in postinst through deb-systemd-helper, which can be read from the text. The presets
shipped in /usr/lib are not applied, because Debian's packages do not apply them; those of an overlay in
/etc/systemd/system-preset are. Links are those of `systemctl enable`: systemd.unit(5), "[Install]".
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import posixpath
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.manifest.model import Units
from erofs_edge.sources.debian.configure.confd import drop_in_lines
from erofs_edge.sources.debian.configure.ids import Position
from erofs_edge.sources.debian.deb import Package
from erofs_edge.tree import FileTree, Inode

Manager = Literal["system", "user"]
DIRECTORIES = ("etc/systemd/{}", "usr/local/lib/systemd/{}", "usr/lib/systemd/{}")
SUFFIXES = (".service", ".socket", ".target", ".timer", ".path", ".mount", ".automount", ".swap", ".slice", ".device")
HELPER = r"deb-systemd-helper((?:\s+--?[\w-]+)*)\s+{}\s+'?([\w@.\\:-]+)'?"


@dataclass(frozen=True, slots=True)
class Install:
    """An [Install] section: lists in the order of the file."""

    wanted_by: tuple[str, ...] = ()
    required_by: tuple[str, ...] = ()
    upheld_by: tuple[str, ...] = ()
    alias: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    default_instance: str = ""


def enabled_by_script(text: str) -> list[tuple[Manager, str]]:
    """Units that a postinst enables on a fresh installation, in the order of the text.

    ``was-enabled`` is true for a unit not seen before, ``debian-installed`` is false: what depends on the latter is for
    upgrades.
    """
    later = {unit for _, unit in re.findall(HELPER.format("debian-installed"), text)}
    asked = {unit for _, unit in re.findall(HELPER.format("was-enabled"), text)}
    found: list[tuple[Manager, str]] = []
    for options, unit in re.findall(HELPER.format("enable"), text):
        entry: tuple[Manager, str] = ("user" if "--user" in options.split() else "system", unit)
        if unit in asked - later and entry not in found:
            found.append(entry)
    return found


def enable_packaged(tree: FileTree, packages: Iterable[Package]) -> list[str]:
    """Enable what the packages' scripts enable; return the names, sorted. Missing units are skipped, and so are those
    that a preset disables: deb-systemd-helper enables by `systemctl preset --preset-mode=enable-only`."""
    done = []
    rules = {manager: _preset_rules(tree, manager) for manager in ("system", "user")}
    for package in sorted(packages, key=lambda p: p.name):
        for manager, unit in enabled_by_script(package.scripts.get("postinst", b"").decode("utf-8", "replace")):
            if find_unit(tree, unit, manager) is not None and _rule(rules[manager], unit)[0] != "disable":
                enable(tree, unit, manager)
                done.append(unit if manager == "system" else f"{unit} (user)")
    return sorted(done)


def _preset_rules(tree: FileTree, manager: Manager, below: str = "/") -> list[list[str]]:
    """The lines of systemd.preset(5) files in a directory, split into words, in order of precedence."""
    lines = drop_in_lines(tree, f"systemd/{manager}-preset", ".preset")
    return [line.text.split() for line in lines if line.where.startswith(below)]


def _rule(rules: list[list[str]], unit: str) -> list[str]:
    """The first line that matches."""
    return next((r for r in rules if len(r) >= 2 and fnmatch.fnmatchcase(unit, r[1])), ["ignore"])


def apply_presets(tree: FileTree) -> None:
    """Lines of /etc/systemd/system-preset/*.preset; the first line that matches a unit decides."""
    rules = _preset_rules(tree, "system", "/etc/")
    if not rules:
        return
    for unit in unit_names(tree, "system"):
        rule = _rule(rules, unit)
        if rule[0] == "disable":
            disable(tree, unit)
        elif rule[0] == "enable":
            for instance in rule[2:] if "@." in unit and len(rule) > 2 else [""]:
                enable(tree, unit.replace("@.", f"@{instance}."))


def apply_manifest(tree: FileTree, units: Units, position: Position = str) -> None:
    """Apply `units:` of a manifest. Raises ManifestError with its position for a unit that does not exist."""
    for key, names in (("disable", units.disable), ("enable", units.enable), ("mask", units.mask)):
        for index, unit in enumerate(names):
            if find_unit(tree, unit) is None:
                close = difflib.get_close_matches(unit, unit_names(tree, "system"), 1)
                raise ManifestError(
                    f"no unit {unit!r} in the system",
                    where=position(f"units.{key}.{index}"),
                    hint=f"did you mean {close[0]!r}?" if close else None,
                )
            if key == "enable":
                enable(tree, unit)
            else:
                disable(tree, unit)
            if key == "mask":
                _mask(tree, unit, position(f"units.{key}.{index}"))


def enable(tree: FileTree, unit: str, manager: Manager = "system", *, _seen: frozenset[str] = frozenset()) -> None:
    """Make the links of a unit's [Install] section, and of the units named by Also=."""
    node_path = find_unit(tree, unit, manager)
    if node_path is None or unit in _seen:
        return
    install = parse_install(_read(tree, node_path))
    if "@." in unit and install.default_instance:
        unit = unit.replace("@.", f"@{install.default_instance}.")
    wants = (("wants", install.wanted_by), ("requires", install.required_by), ("upholds", install.upheld_by))
    for kind, targets in wants if "@." not in unit else ():
        for target in targets:
            _link(tree, manager, f"{_expand(target, unit)}.{kind}/{unit}", node_path)
    for alias in install.alias:
        name = _expand(alias, unit)
        if name != unit:
            _link(tree, manager, name, node_path)
    for other in install.also:
        enable(tree, _expand(other, unit), manager, _seen=_seen | {unit})


def disable(tree: FileTree, unit: str, manager: Manager = "system") -> None:
    """Remove every link in /etc that stands for the unit: in .wants and the like, aliases, a mask."""
    top = tree.get(f"etc/systemd/{manager}")
    path = find_unit(tree, unit, manager)
    if top is None:
        return
    for name, node in list(top.children.items()):
        if node.is_symlink and (
            os.fsencode(f"/{path}") == node.target or (node.target == b"/dev/null" and name == unit.encode())
        ):
            del top.children[name]
        elif node.is_dir and name.endswith((b".wants", b".requires", b".upholds")):
            for link, child in list(node.children.items()):
                if child.is_symlink and _stands_for(os.fsdecode(link), unit):
                    del node.children[link]
            if not node.children:
                del top.children[name]


def find_unit(tree: FileTree, unit: str, manager: Manager = "system") -> str | None:
    """The path of a unit's file (of its template, for an instance), aliases resolved; None if there is none."""
    template = re.sub(r"@[^.]+(?=\.\w+$)", "@", unit)
    for name in dict.fromkeys((unit, template)):
        for directory in DIRECTORIES:
            path = f"{directory.format(manager)}/{name}"
            node = tree.get(path)
            while node is not None and node.is_symlink:
                path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), os.fsdecode(node.target)))[1:]
                node = tree.get(path)
            if node is not None and node.is_file:
                return path
    return None


def unit_names(tree: FileTree, manager: Manager) -> list[str]:
    """All unit files of a tree, sorted."""
    names = set()
    for directory in DIRECTORIES:
        folder = tree.get(directory.format(manager))
        names |= {os.fsdecode(name) for name in (folder.children if folder is not None else ())}
    return sorted(name for name in names if name.endswith(SUFFIXES))


def parse_install(text: str) -> Install:
    """The [Install] section of a unit file. An empty assignment resets its list."""
    lists: dict[str, list[str]] = {}
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Install]" and "=" in stripped and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            words = value.split()
            lists[key.strip()] = lists.get(key.strip(), []) + words if words else []
    return Install(
        wanted_by=tuple(lists.get("WantedBy", ())),
        required_by=tuple(lists.get("RequiredBy", ())),
        upheld_by=tuple(lists.get("UpheldBy", ())),
        alias=tuple(lists.get("Alias", ())),
        also=tuple(lists.get("Also", ())),
        default_instance=(lists.get("DefaultInstance") or [""])[-1],
    )


def _read(tree: FileTree, path: str) -> str:
    node = tree.get(path)
    return node.read().decode("utf-8", "replace") if node is not None else ""


def _link(tree: FileTree, manager: Manager, name: str, target: str) -> None:
    inode = Inode(stat.S_IFLNK | 0o777, target=os.fsencode(f"/{target}"), origin="enabled units")
    tree.add(f"etc/systemd/{manager}/{name}", inode)


def _mask(tree: FileTree, unit: str, where: str) -> None:
    path = f"etc/systemd/system/{unit}"
    old = tree.get(path)
    if old is not None and not old.is_symlink:
        raise ManifestError(
            f"{unit!r} cannot be masked: /{path} is a file from {old.origin or 'a source'}",
            where=where,
            hint="leave the file out instead",
        )
    tree.add(path, Inode(stat.S_IFLNK | 0o777, target=b"/dev/null", origin="masked units"))


def _stands_for(link: str, unit: str) -> bool:
    """Whether a link's name is the unit, or an instance of it if it is a template."""
    return link == unit or ("@." in unit and re.sub(r"@[^.]*(?=\.\w+$)", "@", link) == unit)


def _expand(text: str, unit: str) -> str:
    """The specifiers that [Install] sections use: %i %I %j %n %N %p %%."""
    stem, _, _ = unit.rpartition(".")
    prefix, _, instance = stem.partition("@")
    values = {
        "i": instance,
        "I": instance,
        "p": prefix,
        "P": prefix,
        "n": unit,
        "N": stem,
        "j": prefix.rpartition("-")[2],
        "%": "%",
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise SourceError(f"specifier %{match[1]} in [Install] is not known", where=unit)
        return values[match[1]]

    return re.sub(r"%(.)", value, text)
