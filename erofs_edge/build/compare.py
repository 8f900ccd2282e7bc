# SPDX-License-Identifier: Apache-2.0
"""Compare the two ways to configure a manifest's packages, or two runs of the scripted way.

Only the packages themselves are compared, with nothing from the manifest except accounts: before sources, overlays,
entries and exclusions. The order of accounts in their files is ignored, because scripts create them in another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from erofs_edge.build.inputs import Locked, lock_of
from erofs_edge.build.scripted import MachineDebs, Progress, machine_debs, run_scripts
from erofs_edge.errors import ReproducibilityError
from erofs_edge.manifest.load import load_board, load_system
from erofs_edge.manifest.model import Units
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import Ids, Report, complete_accounts, finish
from erofs_edge.sources.debian.deb import Package, read_debs
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.scripted.capture import Scripted
from erofs_edge.sources.debian.scripted.compare import Difference, Explanation, compare, explain
from erofs_edge.sources.debian.supply import fetch_locked
from erofs_edge.sources.system import configured
from erofs_edge.tree import BytesContent, FileTree

ACCOUNTS = ("passwd", "group", "shadow", "gshadow")
NAMED = 20
"""number of files named in an error about two different runs"""


@dataclass(frozen=True, slots=True)
class Subject:
    """A manifest with its packages, and the machine that can run their scripts."""

    locked: Locked
    debs: Mapping[str, Path]
    packages: list[Package]
    machine: MachineDebs


def subject(manifest: Path, board: Path, cache: Cache, progress: Progress | None = None) -> Subject:
    """A manifest, and the kernel and busybox from a board's lock, fetched unless they are cached."""
    system, hardware = load_system(manifest), load_board(board)
    locked, lock = Locked(system, lock_of(system)), lock_of(hardware)
    debs = fetch_locked(locked.lock.packages["system"], system, host_mirror, cache, progress)
    (kernel,) = fetch(lock.packages["kernel"], host_mirror, cache, progress).values()
    initramfs = fetch(lock.packages["initramfs"], host_mirror, cache, progress)
    return Subject(locked, debs, read_debs(debs, cache), machine_debs(kernel, initramfs, str(board)))


def compare_ways(
    one: Subject, explanations: Sequence[Explanation], cache: Cache, progress: Progress | None = None
) -> list[Difference]:
    """Every difference between the declarative tree (first) and the scripted one (second), with explanations where
    known.

    Unknown scripts are no error here: their effects show as differences. Raises as `run_scripts` does.
    """
    scripted = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages, progress=progress)
    trees = [_tree(one, None), _tree(one, scripted)]
    return explain(compare(*trees), explanations)


def check_reproducible(one: Subject, cache: Cache, progress: Progress | None = None) -> Scripted:
    """Run the scripts once more, compare, and return the tree. Raises ReproducibilityError naming each file that
    differs and the package whose script made it."""
    first = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages, progress=progress)
    again = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages, fresh=True, progress=progress)
    if different := compare(first.tree, again.tree):
        lines = [f"    {d.path} ({d.kind}), made by {d.package}" for d in different[:NAMED]]
        lines += [f"    and {len(different) - NAMED} more"] if len(different) > NAMED else []
        packages = sorted({d.package for d in different})
        raise ReproducibilityError(
            "maintainer scripts produce different files each time they run:\n" + "\n".join(lines),
            where=str(one.locked.loaded.path),
            hint=f"leave out {' and '.join(packages)}, or `exclude` these files",
        )
    return first


def _tree(one: Subject, scripted: Scripted | None) -> FileTree:
    loaded, lock = one.locked.loaded, one.locked.lock
    harmless = sorted({package.name for package in one.packages})
    system = msgspec.structs.replace(loaded.value, units=Units(), harmless_scripts=harmless)
    tree, _ = configured(replace(loaded, value=system), lock, one.packages, scripted)
    accounts = complete_accounts(
        tree, one.packages, system, Ids.of(lock),
        epoch=lock.date, configured=scripted is not None, position=loaded.position,
    )  # fmt: skip
    finish(tree, system, accounts, Report(), position=loaded.position)
    for name in ACCOUNTS:
        node = tree.get(f"etc/{name}")
        if node is not None and node.is_file:
            node.content = BytesContent(b"".join(sorted(node.read().splitlines(keepends=True))))
    return tree
