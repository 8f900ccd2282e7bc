# SPDX-License-Identifier: Apache-2.0
"""Strict comparison of two FileTrees, and the FileTree of a host directory to compare with."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from erofs_edge.tree import FileContent, FileTree, Inode

PIECE = 1 << 20


def scan(root: Path) -> FileTree:
    """Read a directory of the host: names, types, modes, owners, ns times, targets, hard links, xattrs."""
    known: dict[tuple[int, int], Inode] = {}

    def node(path: bytes) -> Inode:
        st = os.lstat(path)
        key = st.st_dev, st.st_ino
        if key in known:
            return known[key]
        inode = known[key] = Inode(st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns)
        if inode.is_dir:
            inode.children = {name: node(path + b"/" + name) for name in os.listdir(path)}
        elif inode.is_symlink:
            inode.target = os.readlink(path)
        elif inode.is_file and st.st_size:
            inode.content = FileContent(Path(os.fsdecode(path)), st.st_size)
        elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            inode.rdev = os.major(st.st_rdev), os.minor(st.st_rdev)
        for name in os.listxattr(path, follow_symlinks=False):
            inode.xattrs[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
        return inode

    return FileTree(node(os.fsencode(root)))


def diff(have: FileTree, must: FileTree, *, owners: bool = True, times: bool = True, limit: int = 20) -> list[str]:
    """Return the differences, one line each, at most `limit`: names, mode, owners, ns mtime, rdev, target, hard-link
    groups, xattrs, size, content. `owners` and `times` False leave those out."""
    found: list[str] = []
    pairs: dict[int, int] = {}
    back: dict[int, int] = {}
    stack = [(b"/", have.root, must.root)]
    while stack and len(found) < limit:
        path, a, b = stack.pop()
        if pairs.setdefault(id(a), id(b)) != id(b) or back.setdefault(id(b), id(a)) != id(a):
            found.append(f"{path!r}: in another hard-link group")
        checks: list[tuple[str, object, object]] = [
            ("mode", oct(a.mode), oct(b.mode)),
            ("rdev", a.rdev, b.rdev),
            ("target", a.target, b.target),
            ("xattrs", a.xattrs, b.xattrs),
            ("size", a.size, b.size),
        ]
        if owners:
            checks += [("uid", a.uid, b.uid), ("gid", a.gid, b.gid)]
        if times:
            checks.append(("mtime", a.mtime_ns, b.mtime_ns))
        found += [f"{path!r}: {what} is {is_!r}, must be {want!r}" for what, is_, want in checks if is_ != want]
        found += [f"{path!r}: {name!r} is missing" for name in sorted(b.children.keys() - a.children.keys())]
        found += [f"{path!r}: {name!r} is too many" for name in sorted(a.children.keys() - b.children.keys())]
        if a.is_file and a.size == b.size:
            for at in range(0, a.size, PIECE):
                if a.content is None or b.content is None or a.content.read(at, PIECE) != b.content.read(at, PIECE):
                    found.append(f"{path!r}: content differs from byte {at} on")
                    break
        prefix = path if path == b"/" else path + b"/"
        stack += [(prefix + name, child, b.children[name]) for name, child in a.children.items() if name in b.children]
    return found[:limit]
