# SPDX-License-Identifier: Apache-2.0
"""FileTree: the single model of a set of files. Sources fill it; the EROFS writer reads it.

Names and symlink targets are bytes, as on disk. Nothing here depends on the host's file system. Contents are read on
demand and in pieces, so a tree of gigabytes costs a few hundred bytes of memory per file. Hard links are one `Inode`
object under several names.
"""

from __future__ import annotations

import bisect
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from erofs_edge.errors import SourceError
from erofs_edge.names import fsdecode, fsencode
from erofs_edge.positions import READ
from erofs_edge.reading import read_exactly

if TYPE_CHECKING:
    from pathlib import Path

ROOT_MODE = stat.S_IFDIR | 0o755


class Content(Protocol):
    """The bytes of a regular file: `size` in bytes, and `read(offset, length)`."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length), clipped to the size. Safe to call from several threads."""
        ...


class BytesContent(NamedTuple):
    """Content held in memory, such as generated configuration."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class FileContent(NamedTuple):
    """`size` bytes from byte `start` of a host file: a whole file, or a member of an uncompressed archive."""

    path: str | bytes | Path
    size: int
    start: int = 0

    def read(self, offset: int, length: int) -> bytes:
        """Raises SourceError if the file cannot be read or is shorter than expected."""
        length = max(0, min(length, self.size - offset))
        try:
            fd = os.open(self.path, READ)
            try:
                data = read_exactly(fd, length, self.start + offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", where=fsdecode(self.path)) from error
        if len(data) != length:
            raise SourceError("file changed while it was being read", where=fsdecode(self.path))
        return data


class SparseContent(NamedTuple):
    """A file of `size` bytes whose `extents` (offset, length) are stored back to back in `stored`; zeros in between."""

    stored: FileContent
    size: int
    extents: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    """byte offset of each extent within `stored`"""

    def read(self, offset: int, length: int) -> bytes:
        """Raises SourceError as FileContent.read does."""
        end = min(offset + max(0, length), self.size)
        pieces: list[bytes] = []
        at = offset
        first = bisect.bisect_right(self.extents, (offset, self.size + 1)) - 1
        for (begin, span), start in zip(self.extents[max(0, first) :], self.starts[max(0, first) :], strict=True):
            if begin >= end:
                break
            low, high = max(begin, at), min(begin + span, end)
            if low < high:
                pieces += [bytes(low - at), self.stored.read(start + low - begin, high - low)]
                at = high
        pieces.append(bytes(max(0, end - at)))
        return b"".join(pieces)


class Inode:
    """A file of any type. Identity is object identity: two names with the same Inode are hard links.

    mode      POSIX type and permission bits
    mtime_ns  nanoseconds since 1970, may be negative
    rdev      (major, minor) of device nodes
    target    symlink target
    content   content of regular files (None means empty)
    children  directory entries
    xattrs    full names (b"user.k") to values
    origin    where the file came from (a package, a manifest line); used only in messages, never in output bytes
    """

    __slots__ = ("children", "content", "gid", "mode", "mtime_ns", "origin", "rdev", "target", "uid", "xattrs")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        rdev: tuple[int, int] = (0, 0),
        target: bytes = b"",
        content: Content | None = None,
        xattrs: dict[bytes, bytes] | None = None,
        children: dict[bytes, Inode] | None = None,
        origin: str = "",
    ) -> None:
        self.mode, self.uid, self.gid, self.mtime_ns = mode, uid, gid, mtime_ns
        self.rdev, self.target, self.content, self.origin = rdev, target, content, origin
        self.xattrs: dict[bytes, bytes] = {} if xattrs is None else xattrs
        self.children: dict[bytes, Inode] = {} if children is None else children

    def replaced(self, **changes: Any) -> Inode:
        """Return a copy of this inode with the given fields changed."""
        return Inode(**{name: getattr(self, name) for name in self.__slots__} | changes)

    @property
    def is_dir(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFLNK

    @property
    def size(self) -> int:
        """Size in bytes of a regular file or of a symlink's target; 0 for other types."""
        if self.is_symlink:
            return len(self.target)
        return self.content.size if self.content is not None else 0

    def read(self) -> bytes:
        """Return the whole content of a regular file. Meant for small files."""
        return self.content.read(0, self.content.size) if self.content is not None else b""


def split(path: bytes | str) -> list[bytes]:
    """Split a path into its components. Raises SourceError on '..', NUL or a name longer than 255 bytes."""
    raw = fsencode(path)
    parts = [p for p in raw.split(b"/") if p not in (b"", b".")]
    for part in parts:
        if part == b".." or b"\0" in part or len(part) > 255:
            raise SourceError("bad path", where=fsdecode(raw))
    return parts


class FileTree:
    """A directory tree under `root`. Paths may start with '/' or not."""

    def __init__(self, root: Inode | None = None) -> None:
        self.root = root if root is not None else Inode(ROOT_MODE)

    def get(self, path: bytes | str, *, follow: bool = False) -> Inode | None:
        """Return the inode at a path, or None. With `follow`, symlinks are resolved inside the tree (up to 40)."""
        todo = split(path)[::-1]
        trail = [self.root]
        budget = 40
        while todo:
            name = todo.pop()
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            child = trail[-1].children.get(name)
            if child is None:
                return None
            if follow and child.is_symlink:
                budget -= 1
                if not budget:
                    return None
                if child.target.startswith(b"/"):
                    trail = [self.root]
                todo += [p for p in reversed(child.target.split(b"/")) if p not in (b"", b".")]
                continue
            trail.append(child)
        return trail[-1]

    def add(self, path: bytes | str, inode: Inode) -> Inode:
        """Put an inode at a path, replacing what is there. Missing parents are created as directories (0755, root).

        A parent that is a symlink to a directory is followed (``/bin/x`` goes to ``/usr/bin``). Raises SourceError if a
        parent is a file, or if a non-directory would replace a directory.
        """
        parts = split(path)
        if not parts:
            if not inode.is_dir:
                raise SourceError("the root is no directory")
            inode.children = {**self.root.children, **inode.children}
            self.root = inode
            return inode
        parent = self.directory(b"/".join(parts[:-1]), origin=inode.origin)
        old = parent.children.get(parts[-1])
        if old is not None and old.is_dir:
            if not inode.is_dir:
                raise SourceError(
                    f"{_kind(inode)} from {inode.origin or 'a source'} would replace a directory"
                    f" from {old.origin or 'another'}",
                    where=fsdecode(b"/" + b"/".join(parts)),
                )
            inode.children = {**old.children, **inode.children}
        parent.children[parts[-1]] = inode
        return inode

    def directory(self, path: bytes | str, *, origin: str = "") -> Inode:
        """Return the directory at a path, creating it and any missing parents (0755, root, mtime 0)."""
        here = b""
        node = self.root
        for part in split(path):
            here += b"/" + part
            child = node.children.get(part)
            if child is not None and child.is_symlink:
                child = self.get(here, follow=True)
            if child is None:
                child = node.children[part] = Inode(ROOT_MODE, origin=origin)
            if not child.is_dir:
                raise SourceError(
                    f"a {_kind(child)} stands where {origin or 'a source'} needs a directory",
                    where=fsdecode(here),
                )
            node = child
        return node

    def remove(self, path: bytes | str) -> bool:
        """Remove a name and everything below it. Return False if it does not exist. Symlinks are not followed."""
        parts = split(path)
        parent = self.get(b"/".join(parts[:-1]))
        return bool(parts) and parent is not None and parent.children.pop(parts[-1], None) is not None

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yield (path, inode) for everything, parents first, names in byte order. The root's path is b"/"."""
        stack: list[tuple[bytes, Inode]] = [(b"/", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            prefix = path if path == b"/" else path + b"/"
            stack += [(prefix + name, node.children[name]) for name in sorted(node.children, reverse=True)]

    def merge(self, other: FileTree, *, at: bytes | str = b"/") -> None:
        """Merge another tree over this one: its files replace existing ones; directories join and take its metadata."""
        base = b"/" + b"/".join(split(at))
        for path, inode in other.walk():
            if path == b"/" and base == b"/":
                continue
            copy = inode
            if inode.is_dir:
                copy = Inode(inode.mode, inode.uid, inode.gid, inode.mtime_ns, xattrs=dict(inode.xattrs))
                copy.origin = inode.origin
            self.add(base + b"/" + path, copy)

    def prune(self, drop: Callable[[bytes, Inode], bool]) -> int:
        """Remove all names for which drop(path, inode) is true, directories with their content. Return how many."""
        gone = 0
        stack: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while stack:
            prefix, node = stack.pop()
            for name in list(node.children):
                path, child = prefix + b"/" + name, node.children[name]
                if drop(path, child):
                    del node.children[name]
                    gone += 1
                elif child.is_dir:
                    stack.append((path, child))
        return gone


def _kind(inode: Inode) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
    return kinds.get(stat.S_IFMT(inode.mode), "device or socket")
