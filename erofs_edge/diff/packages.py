# SPDX-License-Identifier: Apache-2.0
"""Which package owns what in an image: dpkg's own lists, wherever the image keeps them.

Source: dpkg's admindir (dpkg(1)): `status` in deb822 stanzas, `info/NAME[:ARCH].list`, one absolute path per line.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError

ADMINS = (b"usr/lib/sysimage/dpkg", b"var/lib/dpkg")
STATUS_MAX = 64 << 20
LIST_MAX = 16 << 20
_DOCS = b"usr/share/doc/"


@dataclass(slots=True)
class Installed:
    """Packages of an image: name → version, and path (no leading '/') → name. If the image has no dpkg database, names
    are those of /usr/share/doc, without versions."""

    versions: dict[str, str] = field(default_factory=dict)
    owners: dict[bytes, str] = field(default_factory=dict)

    def owner(self, path: bytes) -> str:
        """The package that owns a path, '' for none."""
        found = self.owners.get(path)
        if found is None and path.startswith(_DOCS):
            found = path[len(_DOCS) :].split(b"/")[0].decode("utf-8", "replace")
            found = found if found in self.versions else None
        return found or ""


def installed(image: Image, entries: dict[bytes, DiskInode]) -> Installed:
    """The packages in an image according to dpkg; `entries` are all its paths. Raises ErofsFormatError."""
    for admin in ADMINS:
        status = entries.get(admin + b"/status")
        if status is not None and stat.S_ISREG(status.mode) and status.size <= STATUS_MAX:
            break
    else:
        return _from_docs(entries)
    found = Installed()
    for stanza in image.read(status, 0, status.size).decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if line[:1] not in ("", " ") and ": " in line)
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found.versions[fields["Package"]] = fields.get("Version", "")
    merged = _merged(image, entries)
    prefix = admin + b"/info/"
    for path, inode in entries.items():
        if not (path.startswith(prefix) and path.endswith(b".list") and inode.size <= LIST_MAX):
            continue
        name = path[len(prefix) : -5].split(b":")[0].decode("utf-8", "replace")
        for line in image.read(inode, 0, inode.size).splitlines():
            owned = line.lstrip(b"/")
            top, _, rest = owned.partition(b"/")
            owned = merged[top] + b"/" + rest if top in merged else owned
            there = entries.get(owned)
            if there is not None and not stat.S_ISDIR(there.mode):
                found.owners.setdefault(owned, name)
        for suffix in (b".list", b".md5sums", b".conffiles"):
            found.owners[path[:-5] + suffix] = name
    return found


def _merged(image: Image, entries: dict[bytes, DiskInode]) -> dict[bytes, bytes]:
    """Top directories that are symlinks ('lib' → 'usr/lib'): packages may list their files below either."""
    found = {}
    for name in (b"bin", b"sbin", b"lib", b"lib64", b"lib32"):
        inode = entries.get(name)
        if inode is not None and stat.S_ISLNK(inode.mode):
            try:
                found[name] = image.readlink(inode).lstrip(b"/")
            except ErofsEdgeError:
                continue
    return found


def _from_docs(entries: dict[bytes, DiskInode]) -> Installed:
    names = (path[len(_DOCS) :] for path, inode in entries.items() if path.startswith(_DOCS) and inode.is_dir)
    return Installed({name.decode("utf-8", "replace"): "" for name in names if b"/" not in name})
