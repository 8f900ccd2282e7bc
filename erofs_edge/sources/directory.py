# SPDX-License-Identifier: Apache-2.0
"""Directories of the host as a FileTree.

`scan` takes everything as it is (for `fs build`, like mkfs.erofs). `read_directory` is for manifests: names, contents
and symlink targets come from the host, owners and modes from the manifest, so a checkout under another user or umask
builds the same image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from erofs_edge.errors import SourceError
from erofs_edge.tree import Content, FileContent, FileTree, Inode

if TYPE_CHECKING:
    from pathlib import Path

_NO_XATTRS = (95, 61)  # ENOTSUP, ENODATA
_listxattr: Any = getattr(os, "listxattr", None)  # Python has it on Linux only
_has_modes = hasattr(os, "chown")  # modes and owners, which Windows lacks
_new: Any = tuple.__new__  # twice as fast as calling the named tuple


def scan(path: Path | str, found: Callable[[Content], None] | None = None) -> FileTree:
    """A directory with the host's metadata: mode, owner, ns mtime, device numbers, extended attributes (including ACLs
    and capabilities), hard links. Mount points are crossed. `found` is called with the content of each name of a file
    as soon as it is seen.

    If the host has no modes (Windows), everything is 0755 and owned by root, as in container images built there. Raises
    SourceError if something cannot be read or changes meanwhile.
    """
    root = os.fsencode(path)
    try:
        info = os.stat(root)
        if not stat.S_ISDIR(info.st_mode):
            raise SourceError("not a directory", where=os.fsdecode(root))
        tree = FileTree(_inode(root, info))
        links: dict[tuple[int, int], Inode] = {}
        stack = [(root, tree.root)]
        while stack:
            here, parent = stack.pop()
            children = parent.children
            with os.scandir(here) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if not info.st_nlink:  # Windows counts links only if asked about the file itself
                        info = os.lstat(entry.path)
                    if info.st_nlink == 1 or stat.S_ISDIR(info.st_mode):
                        inode = _inode(entry.path, info)
                    else:  # shared by all names of a file
                        key = (info.st_dev, info.st_ino)
                        inode = links.get(key) or links.setdefault(key, _inode(entry.path, info))
                    children[entry.name] = inode
                    content = inode.content
                    if content is not None:
                        if found is not None:
                            found(content)
                    elif stat.S_ISDIR(inode.mode):
                        stack.append((entry.path, inode))
    except OSError as error:
        where = os.fsdecode(error.filename or root)
        raise SourceError(f"cannot read: {error.strerror}", where=where) from error
    return tree


def read_directory(
    path: Path,
    *,
    uid: int = 0,
    gid: int = 0,
    file_mode: int = 0o644,
    dir_mode: int = 0o755,
    mtime_ns: int = 0,
    executable: Callable[[bytes], bool] = lambda _: False,
    origin: str = "",
) -> FileTree:
    """A directory without the host's metadata. `executable(b"/usr/bin/x")` (path below the directory) decides which
    files get 0755; the host's own bit is ignored. Raises SourceError, also for devices, sockets and fifos.
    """
    root = os.fspath(path)
    tree = FileTree(Inode(stat.S_IFDIR | dir_mode, uid, gid, mtime_ns, origin=origin))
    stack = [(root, b"", tree.root)]
    try:
        while stack:
            here, prefix, parent = stack.pop()
            with os.scandir(here) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    below = prefix + b"/" + name
                    inode = Inode(0, uid, gid, mtime_ns, origin=origin)
                    if entry.is_symlink():
                        inode.mode = stat.S_IFLNK | 0o777
                        inode.target = os.fsencode(os.readlink(entry.path))
                    elif entry.is_dir():
                        inode.mode = stat.S_IFDIR | dir_mode
                        stack.append((entry.path, below, inode))
                    elif entry.is_file():
                        inode.mode = stat.S_IFREG | (0o755 if executable(below) else file_mode)
                        inode.content = FileContent(entry.path, entry.stat().st_size)
                    else:
                        raise SourceError(
                            "neither a file nor a directory nor a symlink",
                            where=entry.path,
                            hint="create devices and fifos with `entries` in the manifest",
                        )
                    parent.children[name] = inode
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=os.fspath(error.filename or root)) from error
    return tree


def fingerprint(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) over the names, kinds, contents and symlink targets below a directory, and the total bytes of its
    files.

    Owners, modes and times of the host are ignored, as in `read_directory`. Raises SourceError.
    """
    import hashlib

    digest = hashlib.sha256()
    size = 0
    for shown, kind, value, length in entries(path):
        size += length
        for part in (shown, kind.encode(), value):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest(), size


def entries(top: Path) -> Iterator[tuple[bytes, str, bytes, int]]:
    """(path below top, kind, sha256 or target, bytes) of everything below a directory, folders in byte order."""
    import hashlib

    root = os.fsencode(top)
    try:
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders.sort()
            for name in sorted(names + [d for d in folders if os.path.islink(os.path.join(folder, d))]):
                path = os.path.join(folder, name)
                info = os.lstat(path)
                if stat.S_ISLNK(info.st_mode):
                    yield os.path.relpath(path, root), "symlink", os.readlink(path), 0
                elif stat.S_ISREG(info.st_mode):
                    with open(path, "rb", buffering=0) as file:
                        value = hashlib.file_digest(file, "sha256").digest()
                    yield os.path.relpath(path, root), "file", value, info.st_size
                else:
                    yield os.path.relpath(path, root), "other", str(stat.S_IFMT(info.st_mode)).encode(), 0
            yield os.path.relpath(folder, root), "directory", b"", 0
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=os.fsdecode(error.filename or root)) from error


def _raise(error: OSError) -> None:
    raise error


def _mode_for(mode: int) -> int:
    """Type and permissions, if the host only knows the type."""
    return stat.S_IFMT(mode) | (0o777 if stat.S_ISLNK(mode) else 0o755)


def _inode(path: bytes, info: os.stat_result) -> Inode:
    mode = info.st_mode if _has_modes else _mode_for(info.st_mode)
    inode = Inode(mode, info.st_uid, info.st_gid, info.st_mtime_ns)
    kind = mode & 0o170000
    if kind == stat.S_IFREG:
        if size := info.st_size:
            inode.content = _new(FileContent, (path, size, 0))
    elif kind == stat.S_IFLNK:
        inode.target = os.readlink(path).replace(os.fsencode(os.sep), b"/")
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        inode.rdev = (os.major(info.st_rdev), os.minor(info.st_rdev))
    try:
        names = _listxattr(path, follow_symlinks=False) if _listxattr is not None else ()
        if names:
            inode.xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
    return inode
