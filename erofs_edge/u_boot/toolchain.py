# SPDX-License-Identifier: Apache-2.0
"""The compiler: Debian packages, pinned by toolchain.lock, unpacked into the private prefix.

PREFIX/roots/cross-ID is a file system of its own whose programs start under their own loader and libraries; ID is the
lock's hash. Nothing is installed; the host supplies a shell, sed, awk and Python.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.errors import SourceError, ToolError
from erofs_edge.manifest.load import load_lock
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.writing import folder_beside

LOCK = Path(__file__).with_name("toolchain.lock")
SUITE, ARCH, GROUP = "trixie", "amd64", "toolchain"
PACKAGES = (
    "bc", "bison", "device-tree-compiler", "flex", "gcc", "gcc-aarch64-linux-gnu", "libc6-dev", "make", "patch",
    "uuid-dev",
)  # fmt: skip
FOLDERS = ("bin", "lib/gcc", "lib/gcc-cross", "libexec/gcc", "libexec/gcc-cross", "aarch64-linux-gnu/bin")
"""folders of programs, below usr"""


def pinned() -> Lock:
    """The lock shipped with this package."""
    return load_lock(LOCK)


def resolved() -> Lock:
    """A lock of the mirror's current packages."""
    with open_apt(host_mirror(), SUITE, ARCH) as apt:
        packages, date = apt.closure(PACKAGES), apt.release_date()
    asked = {GROUP: sorted(PACKAGES)}
    return Lock(name="toolchain", suite=SUITE, arch=ARCH, date=date, requested=asked, packages={GROUP: packages})


def lock_digest(lock: Lock) -> str:
    """SHA-256, in hex, of the packages in a lock, regardless of its date."""
    rows = sorted(f"{package.name} {package.version} {package.sha256}" for package in lock.packages[GROUP])
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def toolchain(lock: Lock, cache: Cache) -> Path:
    """The root folder with the compiler of a lock, unpacked on first use.

    Raises ToolError on a host that cannot run it, PackagesGoneError if the mirror has dropped a package.
    """
    root = prefix() / "roots" / f"cross-{lock_digest(lock)[:16]}"
    if root.is_dir():
        return root
    _check_host()
    debs = fetch(lock.packages[GROUP], host_mirror, cache)
    root.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(root) as folder:
        unpacked = folder / "root"
        unpacked.mkdir()
        for name, deb in sorted(debs.items()):
            done = subprocess.run(
                ["dpkg-deb", "-x", str(deb), str(unpacked)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SourceError(f"cannot unpack: {done.stderr.strip()[-200:]}", where=name)
        for name in ("bin", "sbin", "lib", "lib64"):
            if not (unpacked / name).exists():
                (unpacked / name).symlink_to(f"usr/{name}")
        _wrap_all(unpacked, root)
        try:
            unpacked.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process was first
                raise
    return root


def libraries(root: Path) -> Path:
    """The folder of the loader and the libraries."""
    return _loader(root).parent


def _loader(root: Path) -> Path:
    found = next(iter(sorted(root.glob("usr/lib/*/ld-linux*.so.*"))), None)
    if found is None:
        raise ToolError("the compiler's packages hold no C library", where=str(root))
    return found


def _check_host() -> None:
    if not shutil.which("dpkg-deb"):
        raise ToolError("dpkg-deb not found", hint="this needs a Debian-like host: Debian 12 or newer")
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=False)
    if done.stdout.strip() != ARCH:
        raise ToolError(
            f"U-Boot is compiled on {ARCH} only, this host is {done.stdout.strip() or 'unknown'}",
            hint="build there once and copy the cache: the result is kept in it",
        )


def _wrap_all(unpacked: Path, final: Path) -> None:
    loader = _loader(unpacked)
    there = final / loader.relative_to(unpacked)
    for base in FOLDERS:
        _wrap(sorted((unpacked / "usr" / base).rglob("*")), loader.name, there, unpacked, final)


def _wrap(paths: Iterable[Path], loader: str, there: Path, unpacked: Path, final: Path) -> None:
    """Replace each dynamic program by a script that starts it under its own loader and libraries."""
    for path in paths:
        if path.is_symlink() or not path.is_file() or path.name.startswith(".") or ".so" in path.name:
            continue
        with path.open("rb") as file:
            head = file.read(4096)
        if head[:4] != b"\x7fELF" or f"{loader}\0".encode() not in head:
            continue
        real = path.with_name(f".{path.name}.real")
        path.rename(real)
        program = final / real.relative_to(unpacked)
        path.write_text(
            f"#!/bin/sh\nexec '{there}' --library-path '{there.parent}' --argv0 \"$0\" '{program}' \"$@\"\n"
        )
        path.chmod(0o755)
