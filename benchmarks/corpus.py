# SPDX-License-Identifier: Apache-2.0
"""The tree for the file system benchmarks: a real arm64 root, about 600 MB, from Debian packages.

usage: python benchmarks/corpus.py [FOLDER]     default: the private prefix's corpus/root

The same package versions give the same tree. `FOLDER.manifest` lists them; compare figures only between equal
manifests. Needs no root (all files then belong to the caller: benchmarks use --all-root).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from erofs_edge.sources.debian.apt import open_apt
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.toolbox.prefix import prefix

PACKAGES = """
 base-files base-passwd bash bluez busybox ca-certificates chrony coreutils curl dash debianutils diffutils
 dnsmasq-base findutils firmware-linux-free fonts-dejavu-core git gpiod grep gstreamer1.0-plugins-base
 gstreamer1.0-tools gzip hostname htop i2c-tools init initramfs-tools iproute2 iptables jq kmod libc6
 libqt6core6t64 libqt6network6 linux-image-arm64 login mawk mosquitto mount netbase network-manager nftables
 nginx-light openssh-server openssl passwd perl procps python3 python3-cryptography python3-requests
 python3-yaml runc sed strace sudo systemd tar tzdata udev util-linux vim-tiny wpasupplicant
""".split()
LEFT_OUT = ("usr/share/locale", "usr/share/man")


def default_folder() -> Path:
    return prefix() / "corpus" / "root"


def corpus(folder: Path | None = None) -> Path:
    """Return the tree, built on first use (about 170 MB of downloads)."""
    folder = folder or default_folder()
    manifest = folder.with_name(f"{folder.name}.manifest")
    if manifest.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".corpus-", dir=folder.parent) as name:
        work = Path(name)
        with open_apt(host_mirror(), "trixie", "arm64") as apt:
            debs = apt.download(PACKAGES, work)
        tree = work / "tree"
        tree.mkdir()
        lines = []
        # base-files first: it creates the links /bin, /lib, … that all other packages rely on
        for deb in sorted(debs, key=lambda path: (not path.name.startswith("base-files_"), path.name)):
            feed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
            subprocess.run(
                ["tar", "-x", "--keep-directory-symlink", "--warning=no-timestamp", "-f", "-", "-C", str(tree)],
                stdin=feed.stdout,
                check=True,
            )
            if feed.wait():
                raise SystemExit(f"cannot read {deb.name}")
            lines.append(f"{deb.name} {hashlib.sha256(deb.read_bytes()).hexdigest()}\n")
        for left_out in LEFT_OUT:
            shutil.rmtree(tree / left_out, ignore_errors=True)
        subprocess.run(["chmod", "-R", "u+rwX,go-w", str(tree)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        tree.rename(folder)
        manifest.write_text("".join(sorted(lines)))
    return folder


if __name__ == "__main__":
    print(corpus(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
