# SPDX-License-Identifier: Apache-2.0
"""Package sources besides the Debian mirror: third-party archives, and package files on this machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.errors import VerificationError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import LockedPackage, System
from erofs_edge.manifest.supply import Archive
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.sources.transfer import Progress

LOCAL = "local"
"""the archive name of package files on this machine, in a lock"""


@dataclass(frozen=True, slots=True)
class Supply:
    """components of the suite; archives by name; package files with their control fields."""

    components: tuple[str, ...]
    archives: Mapping[str, Archive] = field(default_factory=dict)
    debs: tuple[tuple[Path, Mapping[str, str]], ...] = ()


def supply_of(loaded: Loaded[System], cache: Cache) -> Supply:
    """The supply of a manifest. Raises SourceError if a package file is malformed, ManifestError if it is for another
    architecture."""
    from erofs_edge.sources.debian.deb import read_deb

    system = loaded.value
    debs = tuple((Path(path), read_deb(Path(path), cache).control) for path in system.debs)
    for index, (path, control) in enumerate(debs):
        if (arch := control["Architecture"]) not in ("all", system.arch):
            raise loaded.error(f"debs.{index}", f"{path.name} is for {arch}, the system for {system.arch}")
    return Supply(tuple(system.components), system.archives, debs)


def fetch_locked(
    packages: Iterable[LockedPackage],
    loaded: Loaded[System],
    mirror: Mirror | Callable[[], Mirror],
    cache: Cache,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The .deb of each package of a system (name → file): from the mirror, from its archives, or on this machine.

    Raises as `fetch`; ManifestError and VerificationError if a package file no longer matches the lock.
    """
    system = loaded.value
    packages = list(packages)
    files = {os.path.basename(path): (i, Path(path)) for i, path in enumerate(system.debs)}
    found: dict[str, Path] = {}
    for package in packages:
        if package.archive != LOCAL:
            continue
        if package.path not in files:
            hint = f"erofs-edge lock {loaded.path}"
            raise loaded.error("debs", f"the lock pins {package.path}, which is not among them", hint=hint)
        index, path = files[package.path]
        if (sha256 := cache.digest(path)) != package.sha256:
            raise VerificationError(
                f"{package.path} is not what the lock pins: sha256 is {sha256}, the lock says {package.sha256}",
                where=loaded.position(f"debs.{index}"),
                hint="restore it, or accept the change: erofs-edge lock",
            )
        found[package.name] = path
    rest = [package for package in packages if package.archive != LOCAL]
    return found | fetch(rest, lambda: _with_archives(mirror, system), cache, progress)


def _with_archives(mirror: Mirror | Callable[[], Mirror], system: System) -> Mirror:
    known = mirror if isinstance(mirror, Mirror) else mirror()
    more = {name: one.uri.rstrip("/") for name, one in system.archives.items() if one.uri is not None}
    return dataclasses.replace(known, archives={**known.archives, **more})
