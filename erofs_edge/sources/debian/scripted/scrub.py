# SPDX-License-Identifier: Apache-2.0
"""Remove from a configured system what depends on the machine and the time of its configuration, and traces of dpkg's
work.

Measured: two runs of the same packages differ in the ssh host keys, the machine's id, the loader's auxiliary cache and
the logs, and in times, which an image does not keep. The rest of the list is the same in each run and useless on a
read-only system: backups, caches, registries that only later package operations read.
"""

from __future__ import annotations

from erofs_edge.sources.globs import matcher
from erofs_edge.tree import FileTree, Inode

VARIES = (
    "/etc/machine-id",
    "/etc/ssh/ssh_host_*",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/random-seed",
)
"""created anew by the device: keys, ids, seeds"""
USELESS = (
    "/dev/**", "/proc/**", "/run/**", "/sys/**", "/tmp/**", "/var/tmp/**",
    "/etc/.pwd.lock", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-",
    "/etc/**.dpkg-old", "/etc/**.dpkg-dist", "/etc/**.dpkg-new", "/etc/**.dpkg-tmp", "/etc/**.ucf-old",
    "/etc/**.ucf-dist",
    "/etc/rc?.d/*",
    "/usr/**/__pycache__",
    "/usr/sbin/policy-rc.d",
    "/var/cache/**",
    "/var/lib/dpkg/**",
    "/var/lib/pam/**", "/var/lib/ucf/**", "/var/lib/shells.state",
    "/var/lib/systemd/deb-systemd-helper-*", "/var/lib/systemd/deb-systemd-user-helper-*",
    "/var/log/**.log", "/var/log/apt/**",
)  # fmt: skip


def scrub(tree: FileTree, shipped: FileTree) -> None:
    """Remove it from the tree, in place. Directories that a package ships stay, empty."""
    matches = matcher((*VARIES, *USELESS))

    def goes(path: bytes, inode: Inode) -> bool:
        if not matches(path):
            return False
        there = shipped.get(path) if inode.is_dir else None
        return there is None or not there.is_dir

    tree.prune(goes)
