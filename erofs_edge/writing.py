# SPDX-License-Identifier: Apache-2.0
"""Writing to the last byte, files that have their name only when they are complete, what a full disk is to the user."""

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
"""errno where the disk, a quota, or the limit of a file's size is reached"""
HIDDEN = ".erofs-edge"
"""what follows the name of an output, and a dot before it, in the hidden names beside it"""
_NAME_MAX = 220  # bytes of it: with what follows, not more than the 255 that file systems take


def refuse_unwritable(folder: Path) -> None:
    """Raises UsageError where there is something else than a folder, ErofsEdgeError where nothing can be put into it,
    or it cannot be made: for what takes long before it writes. Nothing is made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError("this is a file, not a folder", where=str(there), hint="name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        hint = "name a folder that is yours to write to"
        raise ErofsEdgeError("cannot write: no permission, or a read-only file system", where=str(there), hint=hint)


def settled(out: Path) -> Path:
    """The file that is meant by `out`: where symlinks point, also to what is not there yet.

    Raises UsageError where something is there that is no file: a device or a pipe (/dev/null, /dev/stdout) would lose
    its name to the file that takes its place, which root is allowed to do.
    """
    try:
        if not stat.S_ISREG(out.stat().st_mode):
            hint = "name a file: it gets its name when it is complete"
            raise UsageError("the output exists and is not a regular file", where=str(out), hint=hint)
    except OSError:  # not there, or not to be looked at: whoever writes says so
        pass
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def give_name(fd: int, path: Path) -> None:
    """A name, which nothing may have yet, for a file that was opened without one (O_TMPFILE). Raises OSError."""
    # src_dir_fd is not used with an absolute path, but makes this linkat(…, AT_SYMLINK_FOLLOW)
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def write_exactly(fd: int, data: bytes, offset: int) -> None:
    """pwrite until all is written: on a full disk the first call may be short, the next one says why."""
    view = memoryview(data)
    while view:
        done = pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def sync_data(fd: int) -> None:
    """What was written is on the disk, with what it takes to read it."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


class NewFile:
    """A file that becomes `out` when it is complete. Until then it has no name, so that not even a kill leaves any.

    Where the file system has no such files, and for the moment in which it takes the place of another one, it has a
    hidden name beside `out`, and is locked: what killed processes left there goes with the next one of the same `out`.

    fd    to read and write it
    path  to open it once more, in this process and those that it forks
    """

    def __init__(self, out: Path) -> None:
        """Raises OSError, which names `hidden_name(out)`."""
        self._out = out
        self._hidden: Path | None = None
        fd = _unnamed(out)
        self.fd = self._hide(self._create) if fd is None else fd
        self.path = self._hidden or Path(f"/proc/self/fd/{self.fd}")

    def place(self) -> None:
        """It gets its name. Raises OSError."""
        if self._hidden is None:
            with suppress(FileExistsError):  # only renaming takes the place of a file
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
        """Without `place` before, nothing is left."""
        if self.fd >= 0:
            os.close(self.fd)
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def _hide(self, make: Callable[[Path], int]) -> int:
        """`make` with the first hidden name that no living process has."""
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
        if not os.fstat(self.fd).st_nlink:  # swept away before it was locked
            os.close(self.fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return self.fd

    def _link(self, path: Path) -> int:
        give_name(self.fd, path)
        return self.fd

    def _lock(self) -> None:
        """Nobody has it, but for an instant who looks whether it is to be swept away."""
        if locks.keep_nobody_out():
            with suppress(OSError):  # a file system without locks: nothing is swept there either
                locks.lock(self.fd)


def hidden_name(out: Path, number: int = 1) -> Path:
    """A name beside `out` that a file has for a while."""
    name = out.name
    while len(os.fsencode(name)) > _NAME_MAX:
        name = name[:-1]
    return out.with_name(f".{name}{HIDDEN}{number}")


def _unnamed(out: Path) -> int | None:
    """A new file without a name; None where the file system, or this machine, has no such thing."""
    if not hasattr(os, "O_TMPFILE"):  # Linux has it
        return None
    try:
        fd = os.open(out.parent, READ_WRITE | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise OSError(error.errno, error.strerror, str(hidden_name(out))) from error
    if os.access(f"/proc/self/fd/{fd}", os.F_OK):
        return fd
    os.close(fd)  # without /proc, as in some chroots, no name could be given
    return None


def _sweep(path: Path) -> bool:
    """Whether a hidden name is free now: what nobody holds a lock of is removed, a file or a whole folder."""
    if not locks.keep_nobody_out():  # folders, of which that cannot be told, stay
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
        if not _is_still(path, fd):  # of somebody who was quicker
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
    """Raises CapacityError where the block fails because there is no space left for `what`. Other errors stay."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CapacityError(f"no space left for {what}", where=where, hint=hint) from error
        raise


@contextmanager
def new_file(out: Path, what: str) -> Iterator[NewFile]:
    """A file that becomes `out` when the block ends well, and is gone when it does not, nor on Ctrl-C or a kill.

    Where `out` is a symlink, what it points to is written. Raises CapacityError where there is no space left for
    `what`, UsageError as `settled` does, OSError otherwise.
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
    """As `new_file`: a path to write the file by, in this process; it is not beside `out` where it has no name."""
    with new_file(out, what) as new:
        yield new.path


@contextmanager
def sparse_beside(out: Path, size: int, what: str) -> Iterator[int]:
    """As `new_file`: the descriptor of a sparse file of `size` bytes."""
    with new_file(out, what) as new:
        os.ftruncate(new.fd, size)
        yield new.fd


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A folder of this user beside `out`, gone with what is in it when the block ends; it may be renamed in it.

    Those of the same `out` that killed processes left are swept away: nobody holds their lock any more. Raises OSError.
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
        except FileNotFoundError:  # swept away before it was opened
            continue
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            locks.lock(fd)
        if _is_still(path, fd):
            break
        os.close(fd)  # swept away before it was locked
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)
        if fd is not None:
            os.close(fd)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder of this user among the temporary files, gone with what is in it when the block ends; those of the same
    `purpose` that killed processes left are swept away. Raises OSError."""
    from tempfile import gettempdir

    with folder_beside(Path(gettempdir()) / purpose) as folder:
        yield folder
