# SPDX-License-Identifier: Apache-2.0
"""Strict comparison of a directory (mounted by the kernel, or extracted) with the FileTree it must match."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from erofs_edge.tree import FileTree, Inode

PIECE = 1 << 20


def differences(
    tree: FileTree,
    root: Path,
    *,
    all_root: bool = False,
    mtime_ns: int | None = None,
    owners: bool = True,
    times: bool = True,
    xattrs: bool = True,
    limit: int = 20,
) -> list[str]:
    """Return the differences, one line each, at most `limit`: names, type, mode, owner, rdev, size, ns mtime, symlink
    target, nlink, hard-link groups, xattrs, content.

    all_root   owners were set to 0 when the image was made
    mtime_ns   all times were set to this; None: each inode's own
    owners, times, xattrs = False leave those out (for an extraction that cannot keep them)
    """
    found: list[str] = []
    seen_inodes: dict[int, tuple[int, int]] = {}
    seen_files: dict[tuple[int, int], int] = {}
    links = _link_counts(tree)
    stack: list[tuple[bytes, Inode]] = [(b"", tree.root)]
    while stack and len(found) < limit:
        path, inode = stack.pop()
        host = os.fsencode(root) + path
        shown = path or b"/"
        st = os.lstat(host)
        want_mtime = inode.mtime_ns if mtime_ns is None else mtime_ns
        checks: list[tuple[str, object, object]] = [
            ("mode", oct(st.st_mode), oct(inode.mode)),
            ("nlink", st.st_nlink, links[id(inode)]),
        ]
        if owners:
            checks += [
                ("uid", st.st_uid, 0 if all_root else inode.uid),
                ("gid", st.st_gid, 0 if all_root else inode.gid),
            ]
        if times:
            checks.append(("mtime", st.st_mtime_ns, want_mtime))
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            checks.append(("rdev", (os.major(st.st_rdev), os.minor(st.st_rdev)), inode.rdev))
        if xattrs:
            have = {
                n.encode("utf-8", "surrogateescape"): os.getxattr(host, n, follow_symlinks=False)
                for n in os.listxattr(host, follow_symlinks=False)
            }
            checks.append(("xattrs", have, inode.xattrs))
        found += [f"{shown!r}: {what} is {is_!r}, must be {must!r}" for what, is_, must in checks if is_ != must]
        if stat.S_IFMT(st.st_mode) != stat.S_IFMT(inode.mode):
            continue
        if inode.is_dir:
            names = set(os.listdir(host))
            found += [f"{shown!r}: {name!r} is missing" for name in sorted(inode.children.keys() - names)]
            found += [f"{shown!r}: {name!r} is too many" for name in sorted(names - inode.children.keys())]
            stack += [(path + b"/" + name, child) for name, child in inode.children.items() if name in names]
            continue
        key = (st.st_dev, st.st_ino)
        if seen_inodes.setdefault(id(inode), key) != key or seen_files.setdefault(key, id(inode)) != id(inode):
            found.append(f"{shown!r}: in another hard-link group")
        if inode.is_symlink:
            target = os.readlink(host)
            if target != inode.target:
                found.append(f"{shown!r}: target is {target!r}, must be {inode.target!r}")
        elif inode.is_file:
            found += _content_differences(shown, host, inode, st.st_size)
    return found[:limit]


def assert_same(
    tree: FileTree,
    root: Path,
    *,
    all_root: bool = False,
    mtime_ns: int | None = None,
    owners: bool = True,
    times: bool = True,
    xattrs: bool = True,
) -> None:
    """Fails with the list of differences."""
    found = differences(tree, root, all_root=all_root, mtime_ns=mtime_ns, owners=owners, times=times, xattrs=xattrs)
    assert not found, "\n".join(found)


def _link_counts(tree: FileTree) -> dict[int, int]:
    counts: dict[int, int] = {}
    for _, inode in tree.walk():
        if inode.is_dir:
            counts[id(inode)] = 2 + sum(child.is_dir for child in inode.children.values())
        else:
            counts[id(inode)] = counts.get(id(inode), 0) + 1
    return counts


def _content_differences(shown: bytes, host: bytes, inode: Inode, size: int) -> list[str]:
    if size != inode.size:
        return [f"{shown!r}: size is {size}, must be {inode.size}"]
    with open(host, "rb") as handle:
        for offset in range(0, size, PIECE):
            have = handle.read(PIECE)
            must = inode.content.read(offset, PIECE) if inode.content is not None else b""
            if have != must:
                at = offset + next((i for i, (a, b) in enumerate(zip(have, must, strict=False)) if a != b), len(have))
                return [f"{shown!r}: content differs at byte {at}"]
    return []
