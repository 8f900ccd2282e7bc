# SPDX-License-Identifier: Apache-2.0
"""Compile a locked U-Boot, once for each set of inputs; the result contains no key and no boot script.

Those are in the device tree that follows it (`boot/loader.py`), so one compilation serves every key. The inputs are
Debian's source and patches, our configuration and patches, the compiler's packages and how they are called; their hash
is the name under which the result is cached. The same inputs give the same bytes in any folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import msgspec

from erofs_edge.errors import ManifestError, PackagesGoneError, ToolError
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.mirror import VARIABLE
from erofs_edge.toolbox.family import run_family
from erofs_edge.u_boot import seed
from erofs_edge.u_boot.source import ARCHIVES, unpack
from erofs_edge.u_boot.toolchain import libraries, lock_digest, pinned, toolchain
from erofs_edge.writing import scratch_folder

HERE = Path(__file__).parent
RECIPE = 1
"""version of the procedure in this file: raised when it gives other bytes"""
EPOCH = 1_700_000_000
"""seconds since 1970, the compilation time that U-Boot reports"""
KINDS = ("qemu_arm64", "rpi_arm64")
"""U-Boot's own names of the boards: configs/NAME_defconfig"""
COMMON = "locked.config"
FLASHING = "flashing-qemu_arm64"
"""a U-Boot whose disk is written over the network: it is loaded into memory, and never part of a build"""
UEFI = "uefi-qemu_arm64"
"""a locked U-Boot that acts as UEFI firmware, for QEMU's machine: `seed.fill` puts its keys in"""
_RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {kind: (kind, (COMMON, f"{kind}.config")) for kind in KINDS}
_RECIPES[FLASHING] = ("qemu_arm64", ("flashing.config", "qemu_arm64.config"))
_RECIPES[UEFI] = ("qemu_arm64", (COMMON, "qemu_arm64.config", "uefi.config"))
_RECORD = "u-boot-1"
_SAID = 3000


class Compiled(msgspec.Struct, array_like=True):
    """image: u-boot-nodtb.bin; config: U-Boot's whole .config; key: the hash of the inputs."""

    image: bytes
    config: str
    key: str


def fragments(kind: str) -> tuple[Path, ...]:
    """Configuration fragments for that kind of board, applied over U-Boot's own. Raises ManifestError for an unknown
    one.
    """
    if kind not in _RECIPES:
        raise ManifestError(f"U-Boot cannot be built for '{kind}'", hint=f"there are: {', '.join(KINDS)}")
    return tuple(HERE / name for name in _RECIPES[kind][1])


def patches(kind: str) -> list[Path]:
    """Our patches for that kind of board, in order."""
    return sorted(HERE.glob(f"{kind}-*.patch"))


def input_digest(kind: str, lock: Lock) -> str:
    """SHA-256, in hex, of everything that the bytes depend on."""
    parts = [str(RECIPE), str(EPOCH), kind, lock_digest(lock), *(archive.sha256 for archive in ARCHIVES)]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*fragments(kind), *patches(kind))]
    if kind == UEFI:
        parts.append(hashlib.sha256(seed.blank()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def compiled(kind: str, cache: Cache, *, lock: Lock | None = None, fresh: bool = False) -> Compiled:
    """The locked U-Boot of a kind of board, from the cache or compiled now (about two minutes on two processors).

    lock   of the compiler's packages; None: the pinned one
    fresh  compile even if the result is cached, and leave the cache unchanged

    Raises ToolError if it does not compile, MirrorError if something cannot be downloaded.
    """
    lock = lock if lock is not None else pinned()
    key = input_digest(kind, lock)
    known = None if fresh else cache.load_record(_RECORD, key, Compiled)
    if known is not None:
        return known
    with scratch_folder("u-boot") as folder:
        try:
            root = toolchain(lock, cache)
            source = unpack(folder, cache, root / "usr/bin/patch", patches(kind))
            if kind == UEFI:
                seed.put(source)
        except PackagesGoneError as error:
            # they are not in any lock of the user's, so locking again would not help
            error.hint = f"U-Boot is compiled from pinned packages: name an archive that keeps them in {VARIABLE}"
            raise
        objects = build(source, root, f"{_RECIPES[kind][0]}_defconfig", fragments(kind))
        config = (objects / ".config").read_text()
        made = Compiled((objects / "u-boot-nodtb.bin").read_bytes(), config, key)
    if not fresh:
        cache.store_record(_RECORD, key, made)
    return made


def build(source: Path, root: Path, defconfig: str, laid_over: tuple[Path, ...]) -> Path:
    """Configure and compile; return the folder of the objects. Raises ToolError with the last output."""
    where = libraries(root)
    loader = next(iter(where.glob("ld-linux*.so.*")))
    host = f"gcc --sysroot={root} -Wl,--dynamic-linker={loader} -Wl,-rpath={where}"
    environment = {
        "PATH": f"{root}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}", "LC_ALL": "C", "TZ": "UTC", "ARCH": "arm",
        "CROSS_COMPILE": "aarch64-linux-gnu-", "SOURCE_DATE_EPOCH": str(EPOCH), "KBUILD_BUILD_USER": "u-boot",
        "KBUILD_BUILD_HOST": "u-boot", "M4": f"{root}/usr/bin/m4", "BISON_PKGDATADIR": f"{root}/usr/share/bison",
    }  # fmt: skip
    objects = source.parent / "objects"
    program = str(root / "usr/bin/make")
    make = [program, f"O={objects}", f"HOSTCC={host}", f"PYTHON3={sys.executable}", "-s", f"-j{os.cpu_count() or 1}"]
    merge = ["scripts/kconfig/merge_config.sh", "-m", "-O", str(objects), str(objects / ".config")]
    merge += map(str, laid_over)
    for command in ([*make, defconfig], merge, [*make, "olddefconfig"], [*make, "u-boot-nodtb.bin"]):
        try:
            code, said = run_family(command, cwd=source, env=environment)
        except OSError as error:
            raise ToolError(f"U-Boot cannot be compiled: {error.strerror}", where=command[0]) from error
        if code:
            raise ToolError(f"U-Boot does not compile:\n{said[-_SAID:]}", where=command[-1])
    dropped = not_taken((objects / ".config").read_text(), [path.read_text() for path in laid_over])
    if dropped:
        raise ToolError(f"U-Boot's configuration does not take: {', '.join(dropped)}", where=defconfig)
    return objects


def not_taken(config: str, laid_over: list[str]) -> list[str]:
    """Lines of fragments that are missing from a .config: Kconfig silently drops what does not fit. Of two lines for
    one option the last counts."""
    wanted: dict[str, str] = {}
    for text in laid_over:
        for line in text.splitlines():
            if line.startswith("CONFIG_"):
                wanted[line.split("=")[0]] = line
            elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
                wanted[line.split()[1]] = line
    lines = set(config.splitlines())
    names = {line.split("=")[0] for line in lines if line.startswith("CONFIG_")}
    return [line for name, line in wanted.items() if (name in names if line.startswith("#") else line not in lines)]
