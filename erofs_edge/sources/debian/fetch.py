# SPDX-License-Identifier: Apache-2.0
"""Download locked packages into the cache, from the mirror that has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from erofs_edge.errors import PackagesGoneError, VerificationError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.mirror import VARIABLE, Mirror
from erofs_edge.sources.http import Client, check_scheme
from erofs_edge.sources.transfer import CONNECTIONS, Item, Progress, transfer

__all__ = ["Cache", "Progress", "fetch"]


def fetch(
    packages: Iterable[LockedPackage],
    mirror: Mirror | Callable[[], Mirror],
    cache: Cache,
    progress: Progress | None = None,
    *,
    connections: int = CONNECTIONS,
) -> dict[str, Path]:
    """The .deb of each package (name → file in the cache). Cached ones need no network.

    `mirror` may be a function, called only if something has to be downloaded. Raises VerificationError if a file does
    not have the hash in the lock, MirrorError if the mirror fails (what has arrived is kept and used by the next call),
    and PackagesGoneError naming all packages that the mirror no longer has.
    """
    wanted = {package.sha256: package for package in packages}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        there = dict(zip(wanted, pool.map(lambda p: _cached(cache, p), wanted.values()), strict=True))
    missing = [package for digest, package in wanted.items() if there[digest] is None]
    if missing:
        there |= _download(missing, mirror if isinstance(mirror, Mirror) else mirror(), cache, progress, connections)
    return {package.name: path for digest, package in wanted.items() if (path := there[digest]) is not None}


def _cached(cache: Cache, package: LockedPackage) -> Path | None:
    path = cache.blob(package.sha256)
    if path is not None and path.stat().st_size != package.size:
        raise VerificationError(
            f"{package.name} {package.version}: the lock says {package.size} bytes and a hash of"
            f" {path.stat().st_size} bytes",
            hint="the lock file was edited: make it again with erofs-edge lock",
        )
    return path


def _download(
    packages: list[LockedPackage], mirror: Mirror, cache: Cache, progress: Progress | None, connections: int
) -> dict[str, Path | None]:
    items = [_item(package, mirror) for package in packages]
    found = transfer(items, Client(), cache, progress, connections=connections)
    gone = sorted(item.label for item in items if found[item.sha256] is None)
    if gone:
        raise PackagesGoneError(
            gone,
            hint=f"update the lock with erofs-edge lock, or set {VARIABLE} to an archive that keeps old versions",
        )
    return found


def _item(package: LockedPackage, mirror: Mirror) -> Item:
    uri = mirror.uri(package.archive, package.path)
    check_scheme(uri)
    where = f"{package.archive}/{package.path}"
    return Item(f"{package.name} {package.version}", uri, where, package.size, package.sha256)
