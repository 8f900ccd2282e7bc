# SPDX-License-Identifier: Apache-2.0
"""dpkg's database of installed packages, below /usr/lib/sysimage/dpkg (read-only, with the system), linked from /var.

Layout of dpkg's admindir: `status` has one deb822 stanza per package, info/NAME.list and .md5sums (NAME:ARCH for
``Multi-Arch: same``), info/format is 1. Files that the manifest leaves out are left out here too, so that `dpkg -V`
checks what is in the image.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.tar import inode_of
from erofs_edge.tree import BytesContent, FileTree, Inode

ADMIN = "usr/lib/sysimage/dpkg"
LINK = "var/lib/dpkg"
ORDER = (
    *("Package", "Essential", "Protected", "Status", "Priority", "Section", "Installed-Size", "Maintainer"),
    *("Architecture", "Multi-Arch", "Source", "Version"),
)
"""dpkg's own order of the first fields; the others follow in the package's order"""


def write_database(tree: FileTree, packages: Iterable[Package], arch: str) -> None:
    """Write the database, with the packages as installed and configured, and the link to it."""
    ordered = sorted(packages, key=lambda p: (p.name, p.arch))
    there = _Names(tree)
    stanzas = [stanza(package) for package in ordered]
    _add(tree, "status", "".join(s + "\n" for s in stanzas).encode())
    _add(tree, "available", b"")
    _add(tree, "arch-native", f"{arch}\n".encode())
    _add(tree, "info/format", b"1\n")
    for name in ("updates", "triggers", "parts", "alternatives"):
        tree.directory(f"{ADMIN}/{name}", origin="dpkg database")
    for package in ordered:
        same = package.control.get("Multi-Arch") == "same"
        name = f"{package.name}:{package.arch}" if same else package.name
        files = [path for path in package.files if there.has(os.fsencode(path))]
        _add(tree, f"info/{name}.list", b"".join(os.fsencode(path) + b"\n" for path in files))
        kept = set(files)
        sums = "".join(f"{md5}  {path}\n" for path, md5 in package.md5sums.items() if "/" + path in kept)
        _add(tree, f"info/{name}.md5sums", os.fsencode(sums))
        if package.conffiles:
            _add(tree, f"info/{name}.conffiles", "".join(path + "\n" for path in package.conffiles).encode())
    old = tree.get(LINK)
    if old is not None and old.is_dir:
        tree.remove(LINK)
    tree.add(LINK, Inode(stat.S_IFLNK | 0o777, target=f"../../{ADMIN}".encode(), origin="dpkg database"))


def stanza(
    package: Package, status: str = "install ok installed", conffiles: list[tuple[str, str]] | None = None
) -> str:
    """The package's paragraph in the status file, with a line end; `conffiles` have their hashes as shipped unless
    others are given."""
    fields = dict(package.control)
    fields["Status"] = status
    if package.conffiles:
        sums = _conffile_sums(package) if conffiles is None else conffiles
        fields["Conffiles"] = "".join(f"\n {path} {digest}" for path, digest in sums)
    first = [key for key in ORDER if key in fields]
    last = [key for key in ("Description", "Homepage") if key in fields]
    middle = [key for key in fields if key not in first and key not in last]
    return "".join(f"{key}:{_value(fields[key])}\n" for key in first + middle + last)


def _value(text: str) -> str:
    return text if text.startswith("\n") else f" {text}"


def _conffile_sums(package: Package) -> list[tuple[str, str]]:
    """The md5 of each conffile as shipped."""
    known = package.md5sums
    wanted = {os.fsencode(path[1:]) for path in package.conffiles if path[1:] not in known}
    nodes = {
        os.fsdecode(member.path): inode_of(member, package.archive, package.name)
        for member in package.members
        if member.mode and member.path in wanted
    }
    sums = []
    for path in package.conffiles:
        node = nodes.get(path[1:])
        digest = known.get(path[1:])
        if digest is None and node is not None and node.is_file:
            digest = hashlib.md5(node.read(), usedforsecurity=False).hexdigest()
        if digest is not None:
            sums.append((path, digest))
    return sums


class _Names:
    """Which of the packages' names exist in the tree; each folder is looked up once, however many of its files were
    left out.
    """

    def __init__(self, tree: FileTree) -> None:
        self.tree = tree
        self.present = {b"/.", *(path for path, _ in tree.walk())}
        self.folders: dict[bytes, Inode | None] = {}

    def has(self, path: bytes) -> bool:
        """Whether the path exists, following links; anything below /var only appears in the running system."""
        if path in self.present or path.startswith(b"/var/"):
            return True
        folder, _, name = path.rpartition(b"/")
        if folder not in self.folders:
            self.folders[folder] = self.tree.get(folder, follow=True)
        node = self.folders[folder]
        if node is None or name not in node.children:
            return False
        return not node.children[name].is_symlink or self.tree.get(path, follow=True) is not None


def _add(tree: FileTree, name: str, data: bytes) -> None:
    tree.add(f"{ADMIN}/{name}", Inode(stat.S_IFREG | 0o644, content=BytesContent(data), origin="dpkg database"))
