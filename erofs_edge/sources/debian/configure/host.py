# SPDX-License-Identifier: Apache-2.0
"""Turn the tree into one machine's read-only root: name, locale, mount points, homes and keys of its users.

/etc/machine-id is shipped empty: PID 1 then writes a random one to the writable layer over /etc, once, and does not
treat the boot as the first one (machine-id(5)), which would apply presets to all units. /etc/.updated tells the
ConditionNeedsUpdate= units (all mtimes of an image are equal) that their work was done at build time.
"""

from __future__ import annotations

import stat

from erofs_edge.manifest.model import System
from erofs_edge.sources.debian.configure.accounts import Accounts
from erofs_edge.tree import BytesContent, FileTree, Inode

MOUNT_POINTS = ("data", "dev", "proc", "run", "sys", "tmp", "var")
FILES = {
    "etc/machine-id": "",
    "etc/.updated": "",
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/fstab": "# /, /data, /var and the writable layer of /etc are mounted before systemd starts.\n",
}
KEYS = "etc/ssh/authorized_keys.d"
KEYS_CONFIG = "etc/ssh/sshd_config.d/50-authorized-keys.conf"
KEYS_TEXT = """\
# Keys of the manifest's users are part of the system; users add theirs in their homes.
AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/authorized_keys.d/%u
"""
HOMES = "usr/lib/tmpfiles.d/erofs-edge-homes.conf"


def name_host(tree: FileTree, hostname: str) -> None:
    """Set host name, locale and other files that no package brings; existing ones are kept."""
    for path, text in {"etc/hostname": f"{hostname}\n", **FILES}.items():
        if tree.get(path) is None:
            _add(tree, path, text)


def make_mount_points(tree: FileTree) -> None:
    """Create directories that a read-only root needs as mount points."""
    for name in MOUNT_POINTS:
        tree.directory(name, origin="mount points")


def furnish_users(tree: FileTree, system: System, accounts: Accounts) -> None:
    """Create homes (0700) and ssh keys of the manifest's users.

    A home on the data partition (below /var) is created at boot by tmpfiles.d; any other is part of the image.
    """
    lines = []
    for name, user in system.users.items():
        account = accounts.users[name]
        if user.ssh_keys:
            _add(tree, f"{KEYS}/{name}", "".join(key.strip() + "\n" for key in user.ssh_keys))
            if tree.get(KEYS_CONFIG) is None:
                _add(tree, KEYS_CONFIG, KEYS_TEXT)
        home = account.home
        if home in ("/", "/nonexistent") or tree.get(home) is not None:
            continue
        if home.startswith("/var/"):
            lines.append(f"d {home} 0700 {account.uid} {account.gid} -\n")
        elif user.home is not None or home == f"/home/{name}":
            tree.add(home, Inode(stat.S_IFDIR | 0o700, account.uid, account.gid, origin=f"user {name}"))
    if lines:
        _add(tree, HOMES, "".join(lines))


def _add(tree: FileTree, path: str, text: str) -> None:
    content = BytesContent(text.encode())
    tree.add(path, Inode(stat.S_IFREG | 0o644, content=content, origin="manifest"))
