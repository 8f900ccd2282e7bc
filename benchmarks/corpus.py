# SPDX-License-Identifier: Apache-2.0
"""The trees for the benchmarks: a real arm64 system of about 600 MB from Debian packages, and a newer version of it.

usage: python benchmarks/corpus.py [FOLDER]     default: corpus/ in the private prefix

FOLDER/root     PACKAGES and what they depend on, from Debian's SUITE
FOLDER/update   the same with newer packages of the sources in UPDATED: where the suite itself and its security updates
                differ, `root` has the older version and `update` the newer one; otherwise `update` has NEWER's

FOLDER/root.manifest and FOLDER/update.manifest list the packages, and equal manifests mean equal trees: compare figures
only between those. The mirror is the host's; EROFS_EDGE_MIRROR names another, such as a snapshot of the archive, for
packages of a certain day. Needs no root (all files then belong to the caller: benchmarks use --all-root), about 200 MB
of downloads and 1.3 GB of space. Both trees are kept; remove the folder to have them made from today's packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import Mirror, host_mirror
from erofs_edge.toolbox.prefix import prefix

SUITE, NEWER, ARCH = "trixie", "sid", "arm64"
PACKAGES = """
 base-files base-passwd bash bluez busybox ca-certificates chrony coreutils curl dash debianutils diffutils
 dnsmasq-base findutils firmware-linux-free fonts-dejavu-core git gpiod grep gstreamer1.0-plugins-base
 gstreamer1.0-tools gzip hostname htop i2c-tools init initramfs-tools iproute2 iptables jq kmod libc6
 libqt6core6t64 libqt6network6 linux-image-arm64 login mawk mosquitto mount netbase network-manager nftables
 nginx-light openssh-server openssl passwd perl procps python3 python3-cryptography python3-requests
 python3-yaml runc sed strace sudo systemd tar tzdata udev util-linux vim-tiny wpasupplicant
""".split()
UPDATED = {
    "bluez": ["bluez"],
    "busybox": ["busybox"],
    "ca-certificates": ["ca-certificates"],
    "dnsmasq": ["dnsmasq-base"],
    "libxml2": ["libxml2"],
    "nginx": ["nginx", "nginx-common", "nginx-light"],
    "openssh": ["openssh-client", "openssh-server", "openssh-sftp-server"],
    "openssl": ["libssl3t64", "openssl", "openssl-provider-legacy"],
    "python3.13": ["libpython3.13-minimal", "libpython3.13-stdlib", "python3.13", "python3.13-minimal"],
}
"""source → its packages in the tree"""
LEFT_OUT = ("usr/share/locale/*", "usr/share/man/*", "usr/share/doc/*/changelog*", "usr/share/doc/*/NEWS*")
Packages = dict[str, LockedPackage]


def default_folder() -> Path:
    return prefix() / "corpus"


def corpus() -> Path:
    """Return the tree, which the first use makes."""
    return _made(default_folder(), "root")


def update() -> Path:
    """Return the newer version of the tree."""
    return _made(default_folder(), "update")


def _made(folder: Path, name: str) -> Path:
    if not (folder / "update.manifest").exists():  # written last
        make(folder)
    return folder / name


def make(folder: Path) -> None:
    """Make both trees in a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the trees have set-user-ID programs
    mirror = host_mirror()
    older, newer = _versions(mirror)
    with tempfile.TemporaryDirectory(prefix=".corpus-", dir=folder) as name:
        work = Path(name)
        for tree, packages in (("root", older), ("update", newer)):
            print(f"{folder / tree}: {len(packages)} packages", file=sys.stderr, flush=True)
            debs = fetch(packages.values(), mirror, Cache(work / "cache"))
            _unpack(debs, work / tree)
        for tree, packages in (("root", older), ("update", newer)):
            (folder / f"{tree}.manifest").unlink(missing_ok=True)
            shutil.rmtree(folder / tree, ignore_errors=True)
            (work / tree).rename(folder / tree)
            (folder / f"{tree}.manifest").write_text(_manifest(packages))


def _versions(mirror: Mirror) -> tuple[Packages, Packages]:
    """Return the packages of both trees. A source of which there is no newer version is the same in both."""
    with open_apt(mirror, SUITE, ARCH, pockets=[""]) as apt:
        older = _by_name(apt.closure(PACKAGES))
    newer = older.copy()
    missing = {source: [name for name in names if name in older] for source, names in UPDATED.items()}
    for suite, pocket in ((SUITE, "-security"), (NEWER, "")):
        with open_apt(mirror, suite, ARCH, pockets=[pocket]) as apt:
            for source, names in list(missing.items()):
                if not all(map(apt.has, names)):
                    continue
                found, known = _by_name(apt.describe(names)), {name: older[name] for name in names}
                if all(found[name].version == known[name].version for name in names):
                    continue
                # a point release may have a newer version than the security updates before it
                first, second = (known, found) if _is_older(known[names[0]], found[names[0]]) else (found, known)
                older |= first
                newer |= second
                del missing[source]
    if missing:
        print(f"no newer version: {', '.join(sorted(missing))}", file=sys.stderr)
    return older, newer


def _is_older(one: LockedPackage, other: LockedPackage) -> bool:
    return not subprocess.run(["dpkg", "--compare-versions", one.version, "lt", other.version], check=False).returncode


def _by_name(packages: Iterable[LockedPackage]) -> Packages:
    return {package.name: package for package in packages}


def _unpack(debs: dict[str, Path], tree: Path) -> None:
    tree.mkdir()
    left_out = [f"--exclude=./{pattern}" for pattern in LEFT_OUT]
    # base-files first: it creates the links /bin, /lib, … that all other packages rely on
    for name in sorted(debs, key=lambda name: (name != "base-files", name)):
        feed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(debs[name])], stdout=subprocess.PIPE)
        options = ["--keep-directory-symlink", "--warning=no-timestamp", *left_out]
        subprocess.run(["tar", "-x", *options, "-f", "-", "-C", str(tree)], stdin=feed.stdout, check=True)
        if feed.wait():
            raise SystemExit(f"cannot read the package {name}")
    subprocess.run(["chmod", "-R", "u+rwX,go-w", str(tree)], check=True)
    for folder, _, _ in os.walk(tree):
        os.utime(folder, (0, 0))  # tar leaves some with the time of unpacking


def _manifest(packages: Packages) -> str:
    return "".join(f"{one.name} {one.version} {one.arch} {one.sha256}\n" for _, one in sorted(packages.items()))


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    for tree in ("root", "update"):
        print(_made(place, tree))
