# SPDX-License-Identifier: Apache-2.0
"""Another image as a base: its files, accounts and list of packages stay unless replaced."""

from __future__ import annotations

import re
from pathlib import Path

from erofs_edge.errors import SourceError, VerificationError
from erofs_edge.manifest.supply import LockedSource
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.tree import BytesContent, FileTree

BUILT = "system.img"
"""the image in the output folder of a build"""
ACCOUNTS = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid")
STATUS = "usr/lib/sysimage/dpkg/status"


def image_of(path: Path) -> Path:
    """The image that `base` refers to. Raises SourceError if an output folder contains none."""
    if not path.is_dir():
        return path
    if not (path / BUILT).is_file():
        raise SourceError(f"no {BUILT} in this folder", where=str(path), hint="name an EROFS image, or build it first")
    return path / BUILT


def pin_base(path: Path, name: str, cache: Cache) -> LockedSource:
    """A pin of the image as it is now. Raises SourceError."""
    image = image_of(path)
    return LockedSource(kind="base", name=name, sha256=cache.digest(image), size=image.stat().st_size)


def load_base(path: Path, cache: Cache, pin: LockedSource | None = None) -> FileTree:
    """The tree of an image, which must be the one that the lock pins. Its contents are read on demand.

    Raises VerificationError if it is another one, SourceError if it cannot be read, ErofsFormatError if it is not a
    valid image.
    """
    from erofs_edge.erofs.read import Image

    name = pin.name if pin is not None else str(path)
    now = pin_base(path, name, cache)
    if pin is not None and now.sha256 != pin.sha256:
        raise VerificationError(
            f"the base is not what the lock pins: sha256 is {now.sha256}, the lock says {pin.sha256}",
            where=name,
            hint="restore it, or accept the change: erofs-edge lock",
        )
    # it stays open as long as the contents of its files are needed
    tree = Image(image_of(path)).tree()
    for _, inode in tree.walk():
        inode.origin = f"base {name}"
    return tree


def lay_over(base: FileTree, upper: FileTree) -> FileTree:
    """Lay a tree of configured packages over the base: files of the packages win, accounts of the base stay.

    Raises SourceError if a file would replace a directory or the other way round.
    """
    if has_accounts(base):
        for path in ACCOUNTS:
            upper.remove(path)
    base.merge(upper)
    return base


def has_accounts(tree: FileTree) -> bool:
    """Whether an image has accounts of its own."""
    return tree.get("etc/passwd") is not None


def accounts_of(tree: FileTree) -> Ids:
    """The numbers of an image's accounts, for a lock to pin. Malformed lines are skipped."""
    found: list[dict[str, int]] = []
    for path in ("etc/passwd", "etc/group"):
        inode = tree.get(path, follow=True)
        rows = [line.split(":") for line in inode.read().decode(errors="replace").split("\n")] if inode else []
        found.append({row[0]: int(row[2]) for row in rows if len(row) > 3 and re.fullmatch("[0-9]{1,10}", row[2])})
    return Ids(*found)


def installed(tree: FileTree) -> str:
    """dpkg's list of the packages in an image, "" if it has none."""
    inode = tree.get(STATUS)
    return inode.read().decode(errors="surrogateescape") if inode is not None and inode.is_file else ""


def keep_installed(tree: FileTree, before: str) -> None:
    """Add to dpkg's list in the tree the packages of the base that have not been replaced."""
    now = installed(tree)
    stanzas = {stanza.split("\n", 1)[0]: stanza for text in (before, now) for stanza in text.split("\n\n") if stanza}
    text = "".join(stanzas[key].rstrip("\n") + "\n\n" for key in sorted(stanzas))
    inode = tree.get(STATUS)
    if inode is not None and before:
        inode.content = BytesContent(text.encode(errors="surrogateescape"))
