# SPDX-License-Identifier: Apache-2.0
"""Complete writes, files that get their name only once they are complete, and how a full disk is reported."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erofs_edge import locks
from erofs_edge.errors import CapacityError, ErofsEdgeError, UsageError
from erofs_edge.positions import READ_WRITE, pwrite

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""errno if the disk is full, or a quota or the file size limit is reached"""
HIDDEN = ".erofs-edge"
"""suffix of the hidden names beside an output; they start with a dot and the output's name"""
_NAME_MAX = 220  # bytes used of the output's name; a hidden name must not exceed the 255 of file systems


def refuse_unwritable(folder: Path) -> None:
    """Check that files can be written to `folder`, before lengthy work. Nothing is created. Raises UsageError if it is
    not a folder, ErofsEdgeError if it cannot be created or written to."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError("this is a file, not a folder", where=str(there), hint="name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        hint = "name a folder that is yours to write to"
        raise ErofsEdgeError("cannot write: no permission, or a read-only file system", where=str(there), hint=hint)


def settled(out: Path) -> Path:
    """Return the file that `out` refers to, following symlinks even to something that does not exist yet.

    Raises UsageError if it exists and is not a regular file: replacing a device or a pipe (/dev/null, /dev/stdout)
    would take its name away, which root is allowed to do.
    """
    try:
        if not stat.S_ISREG(out.stat().st_mode):
            hint = "name a file: it gets its name when it is complete"
            raise UsageError("the output exists and is not a regular file", where=str(out), hint=hint)
    except OSError:  # missing or inaccessible; the write itself reports that
        pass
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def give_name(fd: int, path: Path) -> None:
    """Give a new name to a file that was opened without one (O_TMPFILE). The name must not exist. Raises OSError."""
    # src_dir_fd is ignored for an absolute path, but turns this into linkat(…, AT_SYMLINK_FOLLOW)
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def write_exactly(fd: int, data: bytes, offset: int) -> None:
    """Call pwrite until everything is written: on a full disk, a short call is followed by one that fails."""
    view = memoryview(data)
    while view:
        done = pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def sync_data(fd: int) -> None:
    """Flush written data to the disk, with the metadata needed to read it."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


class NewFile:
    """A file that becomes `out` once it is complete. Until then it has no name, so even a kill leaves nothing behind.

    If the file system does not support unnamed files, and for the moment of replacing another file, it has a hidden
    name beside `out` and is locked. Leftovers of killed processes are removed when the same `out` is next written.

    fd    descriptor for reading and writing
    path  for opening it again, in this process or those that it forks
    """

    def __init__(self, out: Path) -> None:
        """Raises OSError, which names `hidden_name(out)`."""
        self._out = out
        self._hidden: Path | None = None
        fd = _unnamed(out)
        self.fd = self._hide(self._create) if fd is None else fd
        self.path = self._hidden or Path(f"/proc/self/fd/{self.fd}")

    def place(self) -> None:
        """Give the file its name. Raises OSError."""
        if self._hidden is None:
            with suppress(FileExistsError):  # only a rename can replace a file
                give_name(self.fd, self._out)
                return
            self._lock()
            self._hide(self._link)
        assert self._hidden is not None  # noqa: S101 - `_hide` named it
        if not locks.keep_nobody_out():
            os.close(self.fd)
            self.fd = -1
        self._hidden.replace(self._out)
        self._hidden = None

    def close(self) -> None:
        """Close the file. Without an earlier `place`, nothing is left of it."""
        if self.fd >= 0:
            os.close(self.fd)
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def _hide(self, make: Callable[[Path], int]) -> int:
        """Call `make` with the first hidden name that no living process holds."""
        number = 1
        while True:
            path = hidden_name(self._out, number)
            try:
                fd = make(path)
            except FileExistsError:
                number += 0 if _sweep(path) else 1
            else:
                self._hidden = path
                return fd

    def _create(self, path: Path) -> int:
        self.fd = os.open(path, READ_WRITE | os.O_CREAT | os.O_EXCL, 0o666)
        self._lock()
        if not os.fstat(self.fd).st_nlink:  # removed by another process before it was locked
            os.close(self.fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return self.fd

    def _link(self, path: Path) -> int:
        give_name(self.fd, path)
        return self.fd

    def _lock(self) -> None:
        """Cannot be contended, except briefly by a process that checks whether the file is a leftover."""
        if locks.keep_nobody_out():
            with suppress(OSError):  # a file system without locks: nothing is swept there either
                locks.lock(self.fd)


def hidden_name(out: Path, number: int = 1) -> Path:
    """Return a temporary name beside `out`."""
    name = out.name
    while len(os.fsencode(name)) > _NAME_MAX:
        name = name[:-1]
    return out.with_name(f".{name}{HIDDEN}{number}")


def _unnamed(out: Path) -> int | None:
    """Open a new file without a name; None if the file system or the system does not support that."""
    if not hasattr(os, "O_TMPFILE"):  # only on Linux
        return None
    try:
        fd = os.open(out.parent, READ_WRITE | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise OSError(error.errno, error.strerror, str(hidden_name(out))) from error
    if os.access(f"/proc/self/fd/{fd}", os.F_OK):
        return fd
    os.close(fd)  # without /proc, as in some chroots, it could not be given a name
    return None


def _sweep(path: Path) -> bool:
    """Remove a file or folder under a hidden name if nobody holds its lock. Return whether the name is free now."""
    if not locks.keep_nobody_out():  # folders stay, since one cannot tell
        with suppress(OSError):
            path.unlink()
        return not path.exists()
    try:
        folder = stat.S_ISDIR(path.lstat().st_mode)
        how = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_NONBLOCK
        fd = os.open(path, how | os.O_NOFOLLOW)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    try:
        locks.lock(fd, wait=False)
        if not _is_still(path, fd):  # another process was faster
            return True
        if folder:
            from shutil import rmtree

            rmtree(path)
        else:
            path.unlink()
    except OSError:  # held, or not ours to remove
        return False
    finally:
        os.close(fd)
    return True


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def room_for(what: str, where: str, hint: str | None = None) -> Iterator[None]:
    """Raise CapacityError if the block fails because there is no space left for `what`. Other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CapacityError(f"no space left for {what}", where=where, hint=hint) from error
        raise


@contextmanager
def new_file(out: Path, what: str) -> Iterator[NewFile]:
    """Yield a file that becomes `out` if the block succeeds and otherwise disappears, even after Ctrl-C or a kill.

    If `out` is a symlink, its target is written. Raises CapacityError if there is no space left for `what`, UsageError
    as `settled` does, OSError otherwise.
    """
    out = settled(out)
    with room_for(what, str(out)):
        new = NewFile(out)
        try:
            yield new
            new.place()
        finally:
            new.close()


@contextmanager
def beside(out: Path, what: str) -> Iterator[Path]:
    """Like `new_file`, but yields a path for writing within this process, not beside `out` if the file is unnamed."""
    with new_file(out, what) as new:
        yield new.path


@contextmanager
def sparse_beside(out: Path, size: int, what: str) -> Iterator[int]:
    """Like `new_file`, but yields the descriptor of a sparse file of `size` bytes."""
    with new_file(out, what) as new:
        os.ftruncate(new.fd, size)
        yield new.fd


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Yield a private folder beside `out`, removed with its content after the block. It may be renamed in the block.

    Leftovers of killed processes for the same `out`, whose locks nobody holds any more, are removed. Raises OSError.
    """
    from shutil import rmtree
    from tempfile import mkdtemp

    prefix = f"{hidden_name(out).name[:-1]}-"
    with os.scandir(out.parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(prefix)]
    for name in left:
        _sweep(Path(name))
    while True:
        path = Path(mkdtemp(prefix=prefix, dir=out.parent))
        if not locks.keep_nobody_out():
            fd = None
            break
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed by another process before it was opened
            continue
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            locks.lock(fd)
        if _is_still(path, fd):
            break
        os.close(fd)  # removed by another process before it was locked
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)
        if fd is not None:
            os.close(fd)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield a private folder for temporary files, removed with its content after the block. Leftovers of killed
    processes with the same `purpose` are removed. Raises OSError."""
    from tempfile import gettempdir

    with folder_beside(Path(gettempdir()) / purpose) as folder:
        yield folder
