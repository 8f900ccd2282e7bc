# SPDX-License-Identifier: Apache-2.0
"""Configure a Debian system without running anything: apply to a FileTree what the packages' scripts would do.

`configure` handles the packages alone; `complete_accounts` and `finish` handle what may also come from an overlay
(sysusers.d, tmpfiles.d, units). docs/configuration.md describes what is applied, from where, and what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from erofs_edge.manifest.model import System
from erofs_edge.sources.debian.configure import alternatives, certificates, host, ids, pam, shells, tmpfiles, units
from erofs_edge.sources.debian.configure.accounts import Accounts, Ids, write_accounts
from erofs_edge.sources.debian.configure.apply import apply_effect
from erofs_edge.sources.debian.configure.effects import Enable, Generate, Known, adduser_groups, known_scripts
from erofs_edge.sources.debian.configure.ids import Position
from erofs_edge.sources.debian.deb import Package
from erofs_edge.tree import FileTree

__all__ = ["Ids", "Report", "ScriptNote", "adopt", "assign_ids", "complete_accounts", "configure", "finish"]


@dataclass(frozen=True, slots=True, order=True)
class ScriptNote:
    """A maintainer script that someone should look at."""

    package: str
    version: str
    script: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.script}"


@dataclass(slots=True)
class Report:
    """What was applied, on which basis, and what was not.

    unknown   scripts that nobody has reviewed: only their units and alternatives took effect
    changed   scripts known by name whose text is new: the effects recorded for the earlier text were applied
    enabled   units that the packages enable
    at_boot   tmpfiles.d lines about the read-only part that only a running system could apply
    unpinned  accounts made by scripts and pinned by no lock, as 'user x': their numbers may change with the packages
    unmatched globs of the manifest's `exclude`, `keep`, `executable` and `templates`, and paths of `size_budget`, that
              match nothing, with their positions
    """

    unknown: list[ScriptNote] = field(default_factory=list)
    changed: list[ScriptNote] = field(default_factory=list)
    enabled: list[str] = field(default_factory=list)
    at_boot: list[str] = field(default_factory=list)
    unpinned: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """The same for the user, in sentences; what the packages enable is left out."""
        notes = [
            f"{one.package}: {one.script} has not been reviewed, so its effects are missing" for one in self.unknown
        ]
        notes += [
            f"{one.package}: {one.script} has changed since it was reviewed; its known effects were applied"
            for one in self.changed
        ]
        notes += [f"{one} matches nothing in this system" for one in self.unmatched]
        notes += [
            f"{line} is not applied: a build cannot, and the running system can write only what `writable_etc` names"
            for line in self.at_boot
        ]
        return notes + [
            f"{account}: a maintainer script made it, and its id may change in a later image; to pin it, name it under"
            " `users:` or `groups:` and run erofs-edge lock"
            for account in self.unpinned
        ]


def assign_ids(
    packages: Sequence[Package],
    tree: FileTree,
    system: System,
    pinned: Ids,
    *,
    position: Position = str,
) -> Ids:
    """The ids for a new lock to pin, from those already `pinned` and those that packages, tree and manifest need.

    `tree` needs the packages' files, and the overlay's if it has sysusers.d lines. Deterministic.
    Raises ManifestError if two names would share a number.
    """
    made = adduser_groups(packages)
    return ids.assign_ids(tree, system, pinned, adduser_groups=made, position=position)


def configure(
    tree: FileTree,
    packages: Sequence[Package],
    system: System,
    pinned: Ids,
    *,
    epoch: int,
    position: Position = str,
) -> Report:
    """Bring the unpacked packages into their configured state, in place.

    `pinned` are the lock's ids, `epoch` its date in seconds since 1970.
    Raises ManifestError for accounts that the lock lacks or that clash, SourceError for malformed input.
    """
    report = Report()
    scripts = list(known_scripts(packages))
    for known in scripts:
        if known.entry is None:
            report.unknown.append(_note(known))
        elif known.changed:
            report.changed.append(_note(known))
    accounts = complete_accounts(tree, packages, system, pinned, epoch=epoch, position=position)
    effects = [(known, effect) for known in scripts if known.entry is not None for effect in known.entry.effects]
    for known, effect in effects:
        apply_effect(tree, effect, accounts, known.package)
    generated = {effect.what for _, effect in effects if isinstance(effect, Generate)}
    if "pam" in generated:
        pam.render_stacks(tree)
    if "shells" in generated:
        shells.update_shells(tree)
    if "certificates" in generated:
        certificates.update_certificates(tree)
    alternatives.apply_alternatives(tree, packages)
    for _, effect in effects:
        if isinstance(effect, Enable) and units.find_unit(tree, effect.unit) is not None:
            units.enable(tree, effect.unit)
            report.enabled.append(effect.unit)
    report.enabled = sorted({*report.enabled, *units.enable_packaged(tree, packages)})
    host.name_host(tree, system.hostname)
    host.make_mount_points(tree)
    return report


def adopt(tree: FileTree, system: System) -> None:
    """Turn a system configured by its packages' own scripts into one machine's read-only root, in place."""
    host.name_host(tree, system.hostname)
    host.make_mount_points(tree)


def complete_accounts(
    tree: FileTree,
    packages: Sequence[Package],
    system: System,
    pinned: Ids,
    *,
    epoch: int,
    configured: bool = False,
    position: Position = str,
) -> Accounts:
    """Write passwd, group, shadow and gshadow with what the tree's sysusers.d and the manifest request; if the system
    is `configured` already, in addition to their contents.

    Raises ManifestError for accounts that the lock lacks or that clash.
    """
    made = [] if configured else adduser_groups(packages)
    accounts = ids.build_accounts(tree, system, pinned, adduser_groups=made, configured=configured, position=position)
    write_accounts(tree, accounts, epoch)
    return accounts


def finish(tree: FileTree, system: System, accounts: Accounts, report: Report, *, position: Position = str) -> None:
    """Apply what an overlay may have extended (tmpfiles.d, presets), then the manifest's users and units."""
    report.at_boot = tmpfiles.apply_tmpfiles(tree, accounts)
    host.furnish_users(tree, system, accounts)
    units.apply_presets(tree)
    units.apply_manifest(tree, system.units, position)


def _note(known: Known) -> ScriptNote:
    return ScriptNote(known.package, known.version, known.script, known.sha256)
