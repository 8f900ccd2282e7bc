# SPDX-License-Identifier: Apache-2.0
"""Debian's source of U-Boot: pinned archives, Debian's patches and ours."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from erofs_edge.errors import SourceError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror

VERSION, REVISION = "2025.01", "2025.01-3+deb13u1"
_POOL = "pool/main/u/u-boot"
_FILES = {
    f"u-boot_{VERSION}.orig.tar.bz2": (32890299, "cdef7d507c93f1bbd9f015ea9bc21fa074268481405501945abc6f854d5b686f"),
    f"u-boot_{REVISION}.debian.tar.xz": (174476, "c73a4efe85614af359f0be220e061a0b5c36bb4b3a121ca776dd988444b536f1"),
}
ARCHIVES = tuple(
    LockedPackage(
        name=name, version=REVISION, arch="source", archive="debian", path=f"{_POOL}/{name}", size=size, sha256=sha256
    )
    for name, (size, sha256) in _FILES.items()
)
"""the archives that Debian's .dsc names, with their hashes"""


def unpack(folder: Path, cache: Cache, patch: Path, ours: Sequence[Path] = ()) -> Path:
    """Unpack the patched source in `folder`; return its top directory.

    patch  the program that applies patches
    ours   patches applied after Debian's

    Raises MirrorError if an archive cannot be downloaded, SourceError if a patch does not apply.
    """
    for path in fetch(ARCHIVES, host_mirror, cache).values():
        with tarfile.open(path) as archive:
            archive.extraction_filter = getattr(tarfile, "tar_filter", None)  # Debian 12's Python, 3.11.2, has none
            archive.extractall(folder)
    source = folder / f"u-boot-{VERSION}"
    debian = folder / "debian/patches"
    names = [line.split("#")[0].strip() for line in (debian / "series").read_text().splitlines()]
    for file in [*(debian / name for name in names if name), *ours]:
        done = subprocess.run(
            [str(patch), "-s", "-p1", "-i", str(file)], cwd=source, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SourceError(f"the patch does not apply: {done.stdout.strip()[-300:]}", where=file.name)
    return source
