# SPDX-License-Identifier: Apache-2.0
"""The input of the machine: the packages' files, and a dpkg database that says "unpacked, not configured yet".

The state is that of `dpkg --unpack` on an empty disk (dpkg's lib/dpkg/dump.c and src/main/unpack.c): conffiles wait as
NAME.dpkg-new, with the hash "newconffile" in the status file, and packages interested in a trigger are listed below
triggers/. The preinst scripts, which dpkg runs before it unpacks, are run first in the machine.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from typing import IO

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.database import stanza
from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.tree import BytesContent, FileTree, Inode

ADMIN = "var/lib/dpkg"
NEW = b".dpkg-new"
NEEDED = ("dpkg", "tar")
"""what configures the packages, and what packs the result"""
FIRST = ("base-files", "base-passwd")
"""their preinst scripts create accounts that those of others may use"""
PIECE = 4 << 20


def stage(packages: Sequence[Package]) -> FileTree:
    """The tree that the machine starts from.

    Raises SourceError if packages clash, or if dpkg and tar are not among them.
    """
    names = {package.name for package in packages}
    if missing := [name for name in NEEDED if name not in names]:
        raise SourceError(
            f"maintainer scripts cannot run without {' and '.join(missing)} in the system",
            hint=f"add {' and '.join(missing)} to `packages`",
        )
    tree = unpack(packages)
    for package in packages:
        for path in package.conffiles:
            _set_aside(tree, os.fsencode(path))
    ordered = sorted(packages, key=lambda p: p.name)
    unpacked = [stanza(package, "install ok unpacked", [(c, "newconffile") for c in package.conffiles]) + "\n"
                for package in ordered]  # fmt: skip
    _add(tree, "status", "".join(unpacked).encode())
    for name, data in (("available", b""), ("info/format", b"1\n"), ("lock", b""), ("triggers/Lock", b"")):
        _add(tree, name, data)
    for name in ("updates", "parts"):
        tree.directory(f"{ADMIN}/{name}")
    for package in ordered:
        name = info_name(package)
        _add(tree, f"info/{name}.list", b"".join(os.fsencode(path) + b"\n" for path in package.files))
        for kind, data in package.info.items():
            if kind != "control":
                _add(tree, f"info/{name}.{kind}", data, 0o755 if kind in package.scripts else 0o644)
    for name, lines in _interests(ordered).items():
        _add(tree, f"triggers/{name}", "".join(line + "\n" for line in lines).encode())
    return tree


def info_name(package: Package) -> str:
    """The package's name in dpkg's info/ directory."""
    return f"{package.name}:{package.arch}" if package.control.get("Multi-Arch") == "same" else package.name


def preinst_order(packages: Sequence[Package]) -> list[Package]:
    """The packages with a preinst script, each after its dependencies; by name if the order is free."""
    by_name = {package.name: package for package in packages}
    done: dict[str, Package] = {}
    active: set[str] = set()

    def visit(name: str) -> None:
        package = by_name.get(name)
        if package is None or name in done or name in active:
            return
        active.add(name)
        for key in ("Pre-Depends", "Depends"):
            for other in re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]*)", package.control.get(key, "")):
                visit(other)
        active.discard(name)
        done[name] = package

    for name in [*FIRST, *sorted(by_name)]:
        # the first ones come before their dependencies, which their preinst does not need
        if name in FIRST and name in by_name:
            done[name] = by_name[name]
        else:
            visit(name)
    return [package for package in done.values() if "preinst" in package.scripts]


def write_tar(tree: FileTree, out: IO[bytes]) -> None:
    """Write the tree as a GNU tar archive: parents first, names in byte order, whole seconds, no extended attributes
    (dpkg takes none from a package)."""
    names: dict[int, bytes] = {}
    for path, inode in tree.walk():
        info = tarfile.TarInfo(os.fsdecode(path.lstrip(b"/") or b"."))
        info.mode, info.uid, info.gid = stat.S_IMODE(inode.mode), inode.uid, inode.gid
        info.mtime = max(0, inode.mtime_ns // 10**9)
        first = names.get(id(inode))
        if first is not None and not inode.is_dir:
            info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(first)
        else:
            names[id(inode)] = path.lstrip(b"/")
            _describe(info, inode)
        out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        if info.type == tarfile.REGTYPE and inode.content is not None:
            for at in range(0, info.size, PIECE):
                out.write(inode.content.read(at, PIECE))
            out.write(bytes(-info.size % 512))
    out.write(bytes(1024))


def _describe(info: tarfile.TarInfo, inode: Inode) -> None:
    if inode.is_dir:
        info.type = tarfile.DIRTYPE
    elif inode.is_symlink:
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(inode.target)
    elif inode.is_file:
        info.size = inode.size
    else:
        kinds = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
        info.type = kinds[stat.S_IFMT(inode.mode)]
        info.devmajor, info.devminor = inode.rdev


def _set_aside(tree: FileTree, path: bytes) -> None:
    """Rename a conffile to the name under which dpkg leaves it until the package is configured."""
    folder, _, name = path.rpartition(b"/")
    parent = tree.get(folder, follow=True)
    if parent is not None and name in parent.children:
        parent.children[name + NEW] = parent.children.pop(name)


def _interests(packages: Sequence[Package]) -> dict[str, list[str]]:
    """File below triggers/ → its lines (dpkg's lib/dpkg/trigdeferred.c, triglib.c): 'File' for paths, else one named
    after the trigger."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        for line in package.triggers.decode("utf-8", "replace").splitlines():
            words = line.partition("#")[0].split()
            if len(words) != 2 or not words[0].startswith("interest"):
                continue
            who = info_name(package) + ("/noawait" if words[0] == "interest-noawait" else "")
            if words[1].startswith("/"):
                found["File"].append(f"{words[1]} {who}")
            else:
                found[words[1]].append(who)
    return found


def _add(tree: FileTree, name: str, data: bytes, mode: int = 0o644) -> None:
    tree.add(f"{ADMIN}/{name}", Inode(stat.S_IFREG | mode, content=BytesContent(data), origin="dpkg database"))
