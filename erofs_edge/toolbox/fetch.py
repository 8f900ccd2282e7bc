# SPDX-License-Identifier: Apache-2.0
"""Fill the private prefix from Debian packages, without root and without touching the host.

Each program gets a wrapper that runs it under the loader and libraries of its own suite. Names without a suffix come
from the newest release that we list for them; `mkfs.erofs-1.5`, `-1.8` and `-1.9` are the three generations with which
our reader is tested ('1.9' is sid's: that or newer).
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erofs_edge.errors import SourceError, ToolError
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.toolbox.prefix import STAMP, installed, prefix
from erofs_edge.writing import beside, folder_beside

BIN_DIRS = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/lib/systemd")


@dataclass(frozen=True, slots=True)
class ToolSet:
    """Packages of one suite, and those of their programs that get a wrapper (program → names)."""

    suite: str
    packages: tuple[str, ...]
    programs: dict[str, tuple[str, ...]]


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


EROFS_TOOLS = ("mkfs.erofs", "fsck.erofs", "dump.erofs")
SETS = {
    "qemu": ToolSet(
        "trixie",
        ("qemu-system-arm", "qemu-utils"),
        _same("qemu-system-aarch64", "qemu-img", "qemu-io", "qemu-nbd"),
    ),
    "oracles": ToolSet(
        "trixie",
        (
            "erofs-utils", "cryptsetup-bin", "u-boot-tools", "device-tree-compiler", "gdisk", "fdisk", "dosfstools",
            "mtools", "e2fsprogs", "cpio", "openssl", "kmod",
        ),
        {name: (f"{name}-1.8",) for name in EROFS_TOOLS}
        | _same(
            "veritysetup", "mkimage", "dumpimage", "mkenvimage", "dtc", "fdtget", "fdtput", "sgdisk", "sfdisk",
            "mcopy", "mdir", "mmd", "mtype", "minfo", "e2fsck", "mke2fs", "debugfs", "cpio", "openssl", "fsck.fat",
            "mkfs.fat", "kmod", "depmod", "modprobe",
        ),
    ),
    "oracles-systemd": ToolSet(
        "trixie", ("systemd-container", "libcryptsetup12"),
        _same("systemd-dissect", "systemd-sysupdate", "systemd-pull"),
    ),
    "oracles-sources": ToolSet(
        "trixie",
        ("docker-registry", "libarchive-tools", "sqop", "tar", "umoci"),
        {"docker-registry": ("docker-registry",)} | _same("bsdtar", "sqop", "umoci") | {"tar": ("gnu-tar",)},
    ),
    "oracles-updates": ToolSet("trixie", ("rauc", "squashfs-tools"), _same("rauc", "mksquashfs", "unsquashfs")),
    "oracles-mender": ToolSet("bookworm", ("mender-artifact",), _same("mender-artifact")),
    "oracles-slots": ToolSet("trixie", ("libubootenv-tool", "zstd"), _same("fw_printenv", "fw_setenv", "zstd")),
    "oracles-nbd": ToolSet(
        "trixie",
        ("nbdkit", "libnbd-bin", "nbd-server"),
        _same("nbdkit", "nbdcopy", "nbdinfo", "nbd-server"),
    ),
    # its module runs in Debian's Python of the same release (tests/serve shows how)
    "oracles-nbdsh": ToolSet("trixie", ("python3-libnbd",), {"python3": ("nbd-python3",)}),
    "oracles-web": ToolSet("trixie", ("nginx",), _same("nginx")),
    "oracles-fastboot": ToolSet(
        "trixie", ("fastboot", "android-sdk-libsparse-utils"), _same("fastboot", "simg2img", "img2simg")
    ),
    "oracles-uefi": ToolSet(
        "trixie",
        ("sbsigntool", "osslsigncode", "pesign", "swtpm", "systemd-ukify", "systemd"),
        _same("sbverify", "sbsign", "osslsigncode", "pesign", "swtpm", "systemd-measure"),
    ),
    "oracles-sid": ToolSet("sid", ("erofs-utils",), {name: (name, f"{name}-1.9") for name in EROFS_TOOLS}),
    # the module is loaded into the host's own Python: from the oldest release, so that the host's libc is new enough
    "oracles-token": ToolSet("bookworm", ("softhsm2", "libsofthsm2"), _same("softhsm2-util")),
    # no wrapper: it restarts itself, so the host's own loader must run it (tests/report shows how)
    "oracles-browser": ToolSet("bookworm", ("chromium-headless-shell", "fonts-dejavu-core"), {}),
    # no wrapper: a Perl script for the host's perl and apt, and an emulator without dependencies; for one long test
    "mmdebstrap": ToolSet("bookworm", ("mmdebstrap", "qemu-user-static"), {}),
    # a machine whose kernel has a virtual USB bus (dummy_hcd); for one long test, on amd64
    "usb-machine": ToolSet(
        "trixie", ("qemu-system-x86", "linux-image-amd64", "busybox-static"), _same("qemu-system-x86_64")
    ),
    # no wrappers: Pythons that get their own environments (tests/other_python.py); the second for a long test
    "oracles-diffoscope": ToolSet("trixie", ("diffoscope-minimal", "python3.13", "libstdc++6"), {}),
    "python-3.14": ToolSet("sid", ("python3.14", "libstdc++6"), {}),
    "oracles-manual": ToolSet("trixie", ("mandoc",), _same("mandoc")),
    "oracles-bookworm": ToolSet("bookworm", ("erofs-utils",), {name: (f"{name}-1.5",) for name in EROFS_TOOLS}),
}  # fmt: skip
ORACLE_SETS = [name for name in SETS if name.startswith("oracles")]


def fetch_sets(
    names: list[str], mirror_of: Callable[[], Mirror], say: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """Make sure that the named sets are present; existing ones are not touched and need no network.

    Returns package versions by set. Raises ToolError, MirrorError or SourceError; a set is present completely or not at
    all.
    """
    root = prefix()
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        have = installed(root)
        for name in names:
            if name in have and all((root / "bin" / wrapper).exists() for wrapper in _wrappers(SETS[name])):
                continue
            tools = SETS[name]
            say(f"fetching {name} ({', '.join(tools.packages)} of {tools.suite}) into {root}")
            have[name] = _install(root, name, tools, mirror_of())
            with beside(root / STAMP, "the record of what is there") as path:
                path.write_text(json.dumps(have, indent=1, sort_keys=True) + "\n")
    return {name: have[name] for name in names}


def _wrappers(tools: ToolSet) -> list[str]:
    return [wrapper for wrappers in tools.programs.values() for wrapper in wrappers]


def _install(root: Path, name: str, tools: ToolSet, mirror: Mirror) -> dict[str, str]:
    for needed in ("dpkg", "dpkg-deb"):
        if not shutil.which(needed):
            raise ToolError(f"{needed} not found", hint="this needs a Debian-like host: Debian 12 or newer")
    arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    with folder_beside(root / "roots") as work:
        with open_apt(mirror, tools.suite, arch) as apt:
            chosen = apt.closure(tools.packages)
            debs = apt.download(tools.packages, work)
        unpacked = work / "root"
        unpacked.mkdir()
        for deb in debs:
            done = subprocess.run(
                ["dpkg-deb", "-x", str(deb), str(unpacked)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SourceError(f"cannot unpack: {done.stderr.strip()[-200:]}", where=deb.name)
        final = root / "roots" / name
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(exist_ok=True)
        unpacked.replace(final)
    for program, wrappers in tools.programs.items():
        for wrapper in wrappers:
            _wrap(root, final, program, wrapper)
    return {package.name: package.version for package in chosen if package.name in tools.packages}


def _wrap(prefix_root: Path, root: Path, program: str, name: str) -> None:
    """Write PREFIX/bin/NAME: run the program under root's own loader, libraries, modules and data."""
    real = next((path for d in BIN_DIRS if (path := root / d / program).exists() or path.is_symlink()), None)
    loader = next(
        (p for pattern in ("usr/lib/*/ld-linux*.so.*", "lib/*/ld-linux*.so.*") for p in sorted(root.glob(pattern))),
        None,
    )
    if real is None or loader is None:
        raise ToolError(f"{program} is in none of the packages fetched", where=str(root))
    triplet = loader.parent.name
    library = root / "usr/lib" / triplet
    folders = (
        library,
        library / "systemd",
        library / "android",
        library / "swtpm",
        root / "lib" / triplet,
        root / "usr/lib",
    )
    libraries = ":".join(str(path) for path in folders if path.is_dir())
    firmware = [path for name in ("qemu", "seabios") if (path := root / "usr/share" / name).is_dir()]
    extra = "".join(f"-L '{path}' " for path in firmware) if program.startswith("qemu-system") else ""
    script = prefix_root / "bin" / name
    script.parent.mkdir(exist_ok=True)
    text = f"""#!/bin/sh
export OPENSSL_CONF=/dev/null OPENSSL_MODULES='{root}/usr/lib/{triplet}/ossl-modules'
export QEMU_MODULE_DIR='{root}/usr/lib/{triplet}/qemu' MTOOLSRC=/dev/null
exec '{loader}' --library-path '{libraries}' --argv0 '{program}' '{real}' {extra}"$@"
"""
    with beside(script, "a program's wrapper") as path:
        path.write_text(text)
        path.chmod(0o755)
