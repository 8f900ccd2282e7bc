# SPDX-License-Identifier: Apache-2.0
"""Write directory entries of an image to a directory: files, symlinks, devices, and the metadata of all.

Every call here is made once per file, and most of an extraction is such calls: what a new file already has is not set
again, where that can be known.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import starmap
from typing import Any, NamedTuple

from erofs_edge.erofs import folders
from erofs_edge.erofs.backing import place
from erofs_edge.erofs.dirents import Dirent
from erofs_edge.erofs.folders import Folder, Folders
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsFormatError
from erofs_edge.names import fsdecode, fsencode

_SKIPPED_MAX = 1000
_NO_PRIVILEGE = 1314  # ERROR_PRIVILEGE_NOT_HELD on Windows
_PERMISSIONS, _SPECIAL = 0o777, 0o7000  # of a file; the latter are set-ID and sticky
_REFUSED = (AttributeError, NotImplementedError, OSError, OverflowError)


@dataclass(slots=True)
class ExtractReport:
    """What was written. `skipped` lists (path, what could not be kept and why), at most 1000 of them."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    hard_links: int = 0
    special: int = 0
    data_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_count: int = 0

    def add(self, other: ExtractReport) -> None:
        """Add what another thread wrote."""
        self.files += other.files
        self.directories += other.directories
        self.symlinks += other.symlinks
        self.hard_links += other.hard_links
        self.special += other.special
        self.data_bytes += other.data_bytes
        self.skipped += other.skipped[: _SKIPPED_MAX - len(self.skipped)]
        self.skipped_count += other.skipped_count

    def skip(self, path: bytes, message: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < _SKIPPED_MAX:
            self.skipped.append((fsdecode(b"/" + path), message))


class Batch(NamedTuple):
    """Some entries of one directory, none of them directories: name, nid and type of each.

    nid  of the directory if nothing more will be created in it, so that its own metadata can be set; else -1
    """

    directory: bytes
    entries: list[tuple[bytes, int, int]]
    nid: int = -1


class Allowance:
    """Bytes of content that may still be written, counted together by threads and forked processes.

    `counter`: the one that this process uses; 0 is that of the process which forks.
    """

    def __init__(self, limit: int, processes: int) -> None:
        self._limit = limit
        self._spent = memoryview(mmap.mmap(-1, 8 * (1 + processes))).cast("Q")
        self._lock = threading.Lock()
        self.counter = 0
        self.is_alone = False

    def spend(self, size: int) -> bool:
        """Count `size` bytes. Return whether they were allowed."""
        if self.is_alone:
            self._spent[self.counter] += size
            return sum(self._spent) <= self._limit
        with self._lock:
            self._spent[self.counter] += size
            return sum(self._spent) <= self._limit


class Writer:
    """Writes to the directories that `opener` opens; `owners`: whether files keep theirs. Usable by several threads."""

    def __init__(self, image: Image, opener: Folders, owners: bool, allowance: Allowance) -> None:
        self._image, self._opener, self._owners, self._allowance = image, opener, owners, allowance
        self._is_alone = False
        self._owner_of_new: tuple[int, int] | None = None  # if known, and new files have the mode they are given

    def be_alone(self) -> None:
        """Declare that this process does nothing else, in one thread. Its umask no longer matters then."""
        os.umask(0)
        self._is_alone = self._allowance.is_alone = True
        with self._opener.open(b"") as folder:
            self._owner_of_new = None if folder.fd is None else owner_of_new_files(folder.fd)

    def write(self, batch: Batch, report: ExtractReport) -> None:
        """Write the entries, and add them to the report. Raises ErofsFormatError, OSError."""
        if self._is_alone:
            self._write_into(self._opener.borrow(batch.directory), batch, report)
            return
        with self._opener.open(batch.directory) as folder:
            self._write_into(folder, batch, report)

    def _write_into(self, folder: Folder, batch: Batch, report: ExtractReport) -> None:
        directory, entries, nid = batch
        prefix = directory + b"/" if directory else b""
        child = self._image.child
        for entry in starmap(Dirent, entries):
            inode = child(entry)
            if stat.S_ISREG(inode.mode):
                self._write_file(folder, entry.name, prefix + entry.name, inode, report)
            else:
                self._write_other(folder, entry.name, prefix + entry.name, inode, report)
        if nid >= 0:
            self.finish(folder, directory, self._image.inode(nid), report)

    def finish(self, folder: Folder, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        """Set the metadata of a directory, which changes whenever something is created in it."""
        self._metadata(folder.prefix if folder.fd is None else folder.fd, path, inode, report)

    def _write_file(self, folder: Folder, name: bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        is_settled = not inode.mode & _SPECIAL and self._has_owner(inode)
        mode = inode.mode & _PERMISSIONS if is_settled else 0o600
        fd = os.open(folder.prefix + name, folders.CREATE, mode, dir_fd=folder.fd)
        try:
            self._fill(fd, inode, report)
            if is_settled:
                if inode.xattr_size:
                    self._xattrs(fd, path, inode, report)
                _set_time(fd, path, inode, report)
            elif folder.fd is not None:
                self._metadata(fd, path, inode, report)
        finally:
            os.close(fd)
        if folder.fd is None:  # closing a file that was written to changes its time
            self._metadata(folder.prefix + name, path, inode, report)
        report.files += 1

    def _has_owner(self, inode: DiskInode) -> bool:
        """Whether a new file is known to have the owner of this one, and the mode that it is created with."""
        owner = self._owner_of_new
        return owner is not None and (not self._owners or owner == (inode.uid, inode.gid))

    def _fill(self, fd: int, inode: DiskInode, report: ExtractReport) -> None:
        position, spend = 0, self._allowance.spend
        for offset, data in self._image.stream_lent(inode):
            length = len(data)
            if not spend(length):
                raise ErofsFormatError(
                    "the image decodes to more data than the limit allows",
                    where=place(inode.offset),
                    hint="if you trust the image, raise the limit with --max-bytes",
                )
            if not data[0] and not data[-1] and not bytes(data).strip(b"\0"):
                continue
            if offset != position:
                os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data)
            position = offset + length
            report.data_bytes += length
        if position != inode.size:
            os.ftruncate(fd, inode.size)

    def _write_other(self, folder: Folder, name: bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        """Create a symlink, device, fifo or socket."""
        there = folder.prefix + name
        if stat.S_ISLNK(inode.mode):
            if not self._write_symlink(folder, there, path, inode, report):
                return
        else:
            try:
                if stat.S_ISFIFO(inode.mode):
                    os.mkfifo(there, 0o600, dir_fd=folder.fd)
                else:
                    os.mknod(there, stat.S_IFMT(inode.mode) | 0o600, os.makedev(*inode.rdev), dir_fd=folder.fd)
            except PermissionError:
                report.skip(path, "device node: needs root")
                return
            except (AttributeError, NotImplementedError, OverflowError):
                report.skip(path, "device node: not on this system")
                return
            report.special += 1
        if self._owners and not self._has_owner(inode):
            _keep(
                report, path, "owner",
                lambda: os.chown(there, inode.uid, inode.gid, dir_fd=folder.fd, follow_symlinks=False),
            )  # fmt: skip
        if not stat.S_ISLNK(inode.mode):
            os.chmod(there, stat.S_IMODE(inode.mode), dir_fd=folder.fd)
        self._xattrs(there if folder.fd is None else b"/proc/self/fd/%d/%s" % (folder.fd, name), path, inode, report)
        times = (inode.mtime_ns, inode.mtime_ns)
        try:
            os.utime(there, ns=times, dir_fd=folder.fd, follow_symlinks=False)
        except _REFUSED as error:
            report.skip(path, _refusal("time", error))

    def _write_symlink(
        self, folder: Folder, there: bytes, path: bytes, inode: DiskInode, report: ExtractReport
    ) -> bool:
        """Create a symlink. Return whether that was possible."""
        try:
            target = self._image.readlink(inode).replace(b"/", fsencode(os.sep))
            os.symlink(target, there, dir_fd=folder.fd)
        except OSError as error:
            if getattr(error, "winerror", 0) != _NO_PRIVILEGE:
                raise
            report.skip(path, "symlink: not without a privilege, or the developer mode, of this system")
            return False
        except UnicodeDecodeError:
            report.skip(path, "symlink: this system has no such names")
            return False
        report.symlinks += 1
        return True

    def _metadata(self, target: int | bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        """Set owner, mode, xattrs and time of a file or directory, in the order in which none undoes another. `target`:
        its descriptor, or its path where that works."""
        if self._owners and not self._has_owner(inode):
            _keep(report, path, "owner", lambda: os.chown(target, inode.uid, inode.gid))
        if isinstance(target, int):
            os.fchmod(target, stat.S_IMODE(inode.mode))
        self._xattrs(target, path, inode, report)
        _set_time(target, path, inode, report)

    def _xattrs(self, target: int | bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        if not inode.xattr_size:
            return
        setxattr: Any = getattr(os, "setxattr", None)  # Linux only
        for name, value in self._image.xattrs(inode).items():
            what = f"xattr {fsdecode(name)}"
            if setxattr is None:
                report.skip(path, f"{what}: not on this system")
            elif isinstance(target, int):
                _keep(report, path, what, partial(setxattr, target, name, value))
            else:
                _keep(report, path, what, partial(setxattr, target, name, value, follow_symlinks=False))


def owner_of_new_files(folder: int) -> tuple[int, int] | None:
    """Return the owner of files created in a folder and in those created below it. None unless files certainly get the
    mode they are created with: a default ACL may restrict it, and some file systems have neither modes nor owners."""
    seen = set()
    for mode in (0, _PERMISSIONS):
        try:
            fd = os.open(b".", os.O_WRONLY | os.O_TMPFILE, mode, dir_fd=folder)
        except OSError:
            return None
        info = os.fstat(fd)
        os.close(fd)
        seen.add((info.st_mode & 0o7777 == mode, info.st_uid, info.st_gid))
    (right, *owner), *others = seen
    return (owner[0], owner[1]) if right and not others else None


def _set_time(target: int | bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
    try:
        os.utime(target, ns=(inode.mtime_ns, inode.mtime_ns))
    except _REFUSED as error:
        report.skip(path, _refusal("time", error))


def _keep(report: ExtractReport, path: bytes, what: str, keep: Callable[[], None]) -> None:
    """Set something that the host may refuse; a refusal is reported."""
    try:
        keep()
    except _REFUSED as error:
        report.skip(path, _refusal(what, error))


def _refusal(what: str, error: Exception) -> str:
    if isinstance(error, (AttributeError, NotImplementedError)):
        return f"{what}: not on this system"
    return f"{what}: {getattr(error, 'strerror', None) or error}"


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Call write until everything is written: on a full disk, a short call is followed by one that fails."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
