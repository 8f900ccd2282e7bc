# SPDX-License-Identifier: Apache-2.0
"""Configure the packages of a manifest by their own scripts, or take the result from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.build.inputs import Locked
from erofs_edge.errors import ManifestError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.deb import Package, read_debs
from erofs_edge.sources.debian.scripted.capture import Scripted, configured_tree

Progress = Callable[[int, int], None]
BUSYBOX = "busybox-static"


@dataclass(frozen=True, slots=True)
class MachineDebs:
    """.deb files for the machine that runs the scripts: a board's kernel and busybox."""

    kernel: Path
    busybox: Path


def machine_debs(kernel: Path, initramfs: Mapping[str, Path], where: str) -> MachineDebs:
    """Take them from the packages of a board. Raises ManifestError (at `where`) if its lock has no busybox-static."""
    if BUSYBOX not in initramfs:
        raise ManifestError(
            f"the board's lock has no {BUSYBOX}, which maintainer scripts are run with",
            where=where,
            hint="erofs-edge lock BOARD",
        )
    return MachineDebs(kernel, initramfs[BUSYBOX])


def run_scripts(
    locked: Locked,
    debs: Mapping[str, Path],
    machine: MachineDebs,
    cache: Cache,
    *,
    packages: list[Package] | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Scripted:
    """The tree that the scripts of a manifest's packages make; `debs` are those of its lock, name → file.

    fresh     run them even if the result is cached
    progress  counts packages

    Raises SourceError naming the package whose script fails or hangs, ToolError if QEMU is missing.
    """
    from erofs_edge.vm.configure import Machine, configure_packages

    system, lock = locked.loaded.value, locked.lock
    packages = packages if packages is not None else read_debs(debs, cache)
    made, archive = configure_packages(
        debs,
        packages,
        Machine(system.arch, machine.kernel, machine.busybox, lock.date),
        cache,
        fresh=fresh,
        progress=progress,
    )
    return configured_tree(made.members, archive, made.makers, packages, Ids.of(lock))
