# SPDX-License-Identifier: Apache-2.0
"""What this machine has and what it lacks for each use of erofs-edge, with the one command that fixes it.

Nothing is downloaded, created or changed, and the network is not used.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from erofs_edge.errors import ErofsEdgeError

Purpose = Literal["build", "lock", "boot", "test"]

ALSO: dict[Purpose, tuple[Purpose, ...]] = {"lock": ("build",), "test": ("build", "lock", "boot")}
"""what else must be possible: a lock needs a mirror as a build does"""

PYTHON = (3, 11)
FREE_BYTES = 2 << 30
"""the most that a build of the stock board takes: packages, images and disk together"""

BOOTSTRAP = "tools/bootstrap .venv"
MODULES = ("click", "cryptography", "lz4.block", "msgspec", "platformdirs", "ruamel.yaml", "zstandard")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: what it is needed for, whether it is fine, what was seen, and how to fix it."""

    name: str
    purpose: Purpose
    ok: bool
    seen: str
    mend: str | None = None


def examine() -> list[Finding]:
    """Check everything about this machine, in the order in which it is needed."""
    return [finding for check in _CHECKS for finding in _told(check)]


def _told(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds. An error that ends it is a finding, too: without a home, there are no cache and
    keys."""
    try:
        yield from check()
    except ErofsEdgeError as error:
        yield _failed(check.__name__.strip("_"), "build", error, "set HOME")


def ready(findings: list[Finding], purpose: Purpose) -> bool:
    """Whether everything needed for this purpose is there."""
    return all(finding.ok for finding in findings if finding.purpose in (purpose, *ALSO.get(purpose, ())))


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON or sys.maxsize < 1 << 32:
        yield Finding("Python", "build", False, f"{version}: 64-bit {wanted} or newer is needed", BOOTSTRAP)
    else:
        yield Finding("Python", "build", True, version)


def _modules() -> Iterator[Finding]:
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        yield Finding("Python packages", "build", False, f"missing: {', '.join(missing)}", BOOTSTRAP)
    else:
        yield Finding("Python packages", "build", True, f"all {len(MODULES)} installed")


def _codec() -> Iterator[Finding]:
    """Open each codec, which tests itself with known answers. A build needs LZ4; the others are optional."""
    try:
        from erofs_edge.codec.registry import CODECS, dictionary_for, open_compressor

        good, bad = [], []
        for name, codec in CODECS.items():
            try:
                open_compressor(codec, codec.default_level, 4096, 0, dictionary_for(codec, None, 4096))
                good.append(name)
            except (ErofsEdgeError, ImportError, OSError) as error:
                if name.startswith("lz4"):
                    raise
                bad.append(f"; no {name}: {error}")
    except (ErofsEdgeError, ImportError, OSError) as error:
        yield _failed("codec", "build", error, BOOTSTRAP)
        return
    yield Finding("codec", "build", True, f"{', '.join(good)} pass their self-tests{''.join(bad)}")


def _mirror() -> Iterator[Finding]:
    from erofs_edge.sources.debian.mirror import VARIABLE, host_mirror

    try:
        mirror = host_mirror()
    except ErofsEdgeError as error:
        yield _failed("Debian mirror", "build", error, f"export {VARIABLE}=URI-of-a-Debian-archive")
        return
    source = VARIABLE if mirror.pinned else "the host's apt sources"
    yield Finding("Debian mirror", "build", True, f"{' and '.join(sorted(mirror.archives))}, from {source}")
    yield Finding("archive key", "lock", True, str(mirror.keyring))


def _cache() -> Iterator[Finding]:
    from erofs_edge.sources.cache import VARIABLE, cache_root

    root = cache_root()
    yield from _writable_folder("cache", root, VARIABLE)
    files, size = _usage(root)
    if files:
        yield Finding("cached", "build", True, f"{files} files, {size >> 20} MiB")
    for name, folder in (("space for the cache", root), ("space here", Path.cwd())):
        there = _existing(folder)
        free = shutil.disk_usage(there).free
        enough = free >= FREE_BYTES
        mend = None if enough else f"free {(FREE_BYTES - free >> 20) + 1} MiB on the file system of {there}"
        yield Finding(name, "build", enough, f"{free >> 20} MiB free", mend)


def _keys() -> Iterator[Finding]:
    from erofs_edge.trust.signer import keys_directory

    yield from _writable_folder("development keys", keys_directory(), "EROFS_EDGE_KEYS")


def _apt() -> Iterator[Finding]:
    debian = Path("/etc/debian_version").exists()
    hint = "run erofs-edge lock on Debian 12 or newer" if not debian else None
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        found = shutil.which(program)
        yield Finding(
            program, "lock", found is not None, found or "not found", None if found else hint or _install(package)
        )
    verifier = shutil.which("sqv") or shutil.which("gpgv")
    mend = None if verifier else hint or _install("gpgv")
    yield Finding("signature check of apt", "lock", verifier is not None, verifier or "neither sqv nor gpgv", mend)


def _qemu() -> Iterator[Finding]:
    from erofs_edge.qemu.machine import MENDS, find_qemu

    try:
        emulator = find_qemu()
    except (ErofsEdgeError, OSError) as error:
        yield _failed("QEMU", "boot", error, MENDS)
        return
    yield Finding("QEMU", "boot", True, f"{emulator.version_text}, {emulator.program}")


def _oracles() -> Iterator[Finding]:
    from erofs_edge.toolbox.fetch import ORACLE_SETS
    from erofs_edge.toolbox.prefix import installed, prefix

    missing = [name for name in ORACLE_SETS if name not in installed()]
    if missing:
        seen, mend = f"missing: {', '.join(missing)}", "erofs-edge tools fetch --oracles"
        yield Finding("reference tools", "test", False, seen, mend)
    else:
        yield Finding("reference tools", "test", True, str(prefix()))


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _modules,
    _codec,
    _mirror,
    _cache,
    _keys,
    _apt,
    _qemu,
    _oracles,
)


def _failed(name: str, purpose: Purpose, error: Exception, mend: str) -> Finding:
    """Turn an error into a finding, with its hint as the fix if it has one."""
    hint = error.hint if isinstance(error, ErofsEdgeError) else None
    return Finding(name, purpose, False, str(error), hint or mend)


def _install(package: str) -> str:
    return f"apt-get install {package}"


def _writable_folder(name: str, folder: Path, variable: str) -> Iterator[Finding]:
    there = _existing(folder)
    if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
        yield Finding(name, "build", True, str(folder))
    else:
        yield Finding(name, "build", False, f"{there} is not writable", f"export {variable}=a-folder-of-yours")


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path("/"))


def _usage(folder: Path) -> tuple[int, int]:
    """Count the files below a folder and their bytes."""
    files = size = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue  # another process removed it
            files += 1
    return files, size
