# SPDX-License-Identifier: Apache-2.0
"""Writing to the last byte, files that have their name only when they are complete, what a full disk is to the user."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erofs_edge.errors import CapacityError, ErofsEdgeError, UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""errno where the disk, a quota, or the limit of a file's size is reached"""


def refuse_unwritable(folder: Path) -> None:
    """Raises UsageError where there is something else than a folder, ErofsEdgeError where nothing can be put into it,
    or it cannot be made: for what takes long before it writes. Nothing is made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError("this is a file, and no folder", where=str(there), hint="name another folder")
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
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


@contextmanager
def beside(out: Path, what: str) -> Iterator[Path]:
    """A path beside `out`: renamed to it when the block ends well, gone when it does not, nor on Ctrl-C.

    Where `out` is a symlink, what it points to is written. Raises CapacityError where there is no space left for
    `what`, UsageError as `settled` does, OSError otherwise.
    """
    out = settled(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CapacityError(f"no space left for {what}", where=str(out)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sparse_beside(out: Path, size: int, what: str) -> Iterator[int]:
    """The descriptor of a new sparse file of `size` bytes that becomes `out`. Otherwise as `beside`."""
    with beside(out, what) as temporary:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(fd, size)
            yield fd
        finally:
            os.close(fd)
