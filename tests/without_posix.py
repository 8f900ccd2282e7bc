# SPDX-License-Identifier: Apache-2.0
"""A Python that has only what Python has on Windows, to run commands in: ``python without_posix.py fs build …``.

What is not there is taken away, and what behaves otherwise is made to: descriptors are text unless opened with
O_BINARY, an open file can be neither replaced nor removed, folders cannot be opened, files have no execute bits, and
names in a directory come without inode numbers. What no Python on another system shows, such as backslashes in paths
and names of devices, is not here.
"""

from __future__ import annotations

import builtins
import ctypes
import ctypes.util
import fcntl
import mmap
import multiprocessing.connection  # noqa: F401  loaded before names are taken away: Windows has other parts of it
import os
import platform  # noqa: F401
import re
import select
import shutil
import signal
import stat
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import platformdirs.unix  # noqa: F401  its part for Windows asks for what is nowhere else

NAMES = """pread preadv pwrite pwritev readv writev fork forkpty register_at_fork mkfifo mknod makedev major minor
    geteuid getuid getgid getegid getgroups getresuid getpgid getpgrp setsid setpgid killpg chown lchown fchown fchmod
    lchmod fdatasync sync statvfs fstatvfs sysconf confstr uname nice posix_fadvise posix_fallocate posix_spawn sendfile
    splice copy_file_range memfd_create eventfd pidfd_open sched_getaffinity sched_setaffinity sched_yield getloadavg
    listxattr getxattr setxattr removexattr lockf wait wait3 wait4 waitid WNOHANG WIFEXITED WEXITSTATUS WIFSIGNALED
    WTERMSIG set_blocking get_blocking pipe2 openpty ttyname getrandom fchdir chroot environb fwalk O_NONBLOCK O_CLOEXEC
    O_NOFOLLOW O_DIRECTORY O_TMPFILE O_PATH O_DIRECT O_NOATIME O_SYNC O_DSYNC O_NOCTTY SEEK_DATA SEEK_HOLE RTLD_LAZY
    RWF_NOWAIT""".split()
SIGNALS = "SIGHUP SIGPIPE SIGALRM SIGCHLD SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGWINCH setitimer pthread_sigmask".split()
MODULES = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "crypt"]
O_BINARY = 1 << 30
GRANULARITY = 65536
OURS = f"{os.sep}erofs_edge{os.sep}"


def take_away() -> None:
    for name in NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        delattr(signal, name)
    for name in [name for name in vars(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))]:
        delattr(mmap, name)
    for name in ("poll", "epoll"):
        delattr(select, name)
    sys.modules["msvcrt"] = locks_on_bytes()
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    os.supports_dir_fd.clear()
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.supports_fd.clear()
    os.supports_follow_symlinks -= {os.utime, os.chmod, os.link}
    sys.platform = "without-posix"


def locks_on_bytes() -> ModuleType:
    """The part of msvcrt that is about locks, by those of POSIX, which are on bytes too."""
    module: Any = ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(fd: int, mode: int, length: int) -> None:
        assert mode == module.LK_NBLCK
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, os.lseek(fd, 0, os.SEEK_CUR))

    module.locking = locking
    return module  # type: ignore[no-any-return]


def our_call() -> bool:
    """Whether code of erofs_edge, and not Python's own, calls what calls this."""
    return OURS in sys._getframe(2).f_code.co_filename


def open_files() -> Iterator[str]:
    """Of this process, also what is mapped."""
    for number in os.listdir("/proc/self/fd"):
        try:
            yield REAL["readlink"](f"/proc/self/fd/{number}")
        except OSError:
            continue
    with builtins.open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            yield line.rstrip("\n")[73:]


def refuse_open(*paths: Any) -> None:
    """Raises PermissionError where one of these is open: files are shared for reading and writing only."""
    held = set(open_files())
    for path in paths:
        if os.path.abspath(os.fsdecode(path)) in held:
            raise PermissionError(13, "The process cannot access the file: it is in use", os.fsdecode(path))


REAL: dict[str, Any] = {}


def replace_in(module: Any, name: str, made: Any) -> None:
    REAL[name] = getattr(module, name)
    setattr(module, name, made)


def no_dir_fd(named: dict[str, Any]) -> None:
    if any(named.get(name) is not None for name in ("dir_fd", "src_dir_fd", "dst_dir_fd")):
        raise NotImplementedError("dir_fd unavailable on this platform")


def as_there(info: os.stat_result, *, of_entry: bool = False) -> os.stat_result:
    """What Windows tells of a file. An entry of a directory has no inode number, and so no number of links."""
    mode = stat.S_IFMT(info.st_mode) | (0o777 if stat.S_ISDIR(info.st_mode) else 0o666)
    ino, dev, links = (0, 0, 0) if of_entry else (info.st_ino, info.st_dev, info.st_nlink)
    times = (int(info.st_atime), int(info.st_mtime), int(info.st_ctime))
    exact = {"st_atime": info.st_atime, "st_mtime": info.st_mtime, "st_ctime": info.st_ctime}
    nanoseconds = {"st_atime_ns": info.st_atime_ns, "st_mtime_ns": info.st_mtime_ns, "st_ctime_ns": info.st_ctime_ns}
    return os.stat_result((mode, ino, dev, links, 0, 0, info.st_size, *times), {**exact, **nanoseconds})


class Entry:
    """Of a directory, as os.DirEntry."""

    def __init__(self, entry: Any) -> None:
        self._entry, self.name, self.path = entry, entry.name, entry.path

    def __fspath__(self) -> Any:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return bool(self._entry.is_dir(follow_symlinks=follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return bool(self._entry.is_file(follow_symlinks=follow_symlinks))

    def is_symlink(self) -> bool:
        return bool(self._entry.is_symlink())

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return as_there(self._entry.stat(follow_symlinks=follow_symlinks), of_entry=not follow_symlinks)


def behave_otherwise() -> None:
    os.O_BINARY = O_BINARY  # type: ignore[attr-defined]
    sys.getfilesystemencodeerrors = lambda: "surrogatepass"  # what is no UTF-8 is no name

    def decoded(name: Any) -> str:
        raw = os.fspath(name)
        return raw if isinstance(raw, str) else str(raw.decode("utf-8", "surrogatepass"))

    def encoded(name: Any) -> bytes:
        raw = os.fspath(name)
        return raw if isinstance(raw, bytes) else bytes(raw.encode("utf-8", "surrogatepass"))

    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        no_dir_fd({"dir_fd": dir_fd})
        if our_call() and not flags & O_BINARY:
            raise AssertionError(f"{path} is opened as text")
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return int(REAL["open"](path, flags & ~O_BINARY, mode))

    def status(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        no_dir_fd({"dir_fd": dir_fd})
        return as_there(REAL["stat"](path, follow_symlinks=follow_symlinks))

    @contextmanager
    def scanned(path: Any = ".") -> Iterator[Iterator[Entry]]:
        if isinstance(path, int):
            raise TypeError("scandir: path should be string, bytes, os.PathLike or None, not int")
        with REAL["scandir"](path) as entries:
            yield map(Entry, entries)

    def renamed(source: Any, target: Any, **named: Any) -> None:
        no_dir_fd(named)
        refuse_open(source, target)
        REAL["replace"](source, target)

    def renamed_to_new(source: Any, target: Any, **named: Any) -> None:
        no_dir_fd(named)
        refuse_open(source)
        if os.path.lexists(target):
            raise FileExistsError(17, "Cannot create a file when that file already exists", source)
        REAL["rename"](source, target)

    def removed(path: Any, **named: Any) -> None:
        no_dir_fd(named)
        refuse_open(path)
        REAL["unlink"](path)

    def timed(path: Any, times: Any = None, *, ns: Any = None, follow_symlinks: bool = True, **named: Any) -> None:
        no_dir_fd(named)
        if not follow_symlinks:
            raise NotImplementedError("utime: follow_symlinks unavailable on this platform")
        if isinstance(path, int):
            raise TypeError("utime: path should be string, bytes or os.PathLike, not int")
        REAL["utime"](path, times, **({"ns": ns} if ns is not None else {}))

    def linked(target: Any, path: Any, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
        no_dir_fd({"dir_fd": dir_fd})
        if os.environ.get("WITHOUT_POSIX_SYMLINKS") == "no":
            error = OSError(22, "A required privilege is not held by the client", path)
            error.winerror = 1314  # type: ignore[attr-defined]
            raise error
        REAL["symlink"](target, path)

    def checked(name: str) -> Any:
        def call(*words: Any, **named: Any) -> Any:
            no_dir_fd(named)
            if words and isinstance(words[0], int):
                raise TypeError(f"{name}: path should be string, bytes or os.PathLike, not int")
            return REAL[name](*words, **named)

        return call

    class Mapped(mmap.mmap):
        def __new__(cls, fileno: int, length: int, tagname: None = None, access: int = 0, offset: int = 0) -> Mapped:
            if offset % GRANULARITY:
                raise OSError(22, "the offset is not aligned")
            return super().__new__(cls, fileno, length, access=access, offset=offset)

        def madvise(self, *_: Any) -> None:
            raise AttributeError("madvise")

    replace_in(os, "fsdecode", decoded)
    replace_in(os, "fsencode", encoded)
    replace_in(os, "readlink", os.readlink)
    for name in ("mkdir", "rmdir", "listdir", "link", "chmod", "access"):
        replace_in(os, name, checked(name))
    replace_in(os, "open", opened)
    replace_in(os, "symlink", linked)
    replace_in(os, "stat", status)
    replace_in(os, "lstat", lambda path, **named: status(path, follow_symlinks=False, **named))
    replace_in(os, "fstat", lambda number: as_there(REAL["fstat"](number)))
    replace_in(os, "scandir", scanned)
    replace_in(os, "replace", renamed)
    replace_in(os, "rename", renamed_to_new)
    replace_in(os, "unlink", removed)
    replace_in(os, "remove", removed)
    replace_in(os, "utime", timed)
    mmap.mmap = Mapped  # type: ignore[misc]
    mmap.ALLOCATIONGRANULARITY = GRANULARITY  # type: ignore[misc]


def hide_what_extensions_hold() -> None:
    """Extension modules export one name there, that of their start; a library of C may lie beside."""

    def only_start(real: Any) -> Any:
        class Library(real):  # type: ignore[misc]
            def __init__(self, name: Any, *words: Any, **named: Any) -> None:
                if name is None:
                    raise TypeError("argument of type 'NoneType' is not iterable")
                super().__init__(name, *words, **named)

            def __getitem__(self, name: Any) -> Any:
                if re.search(r"\.(cpython-|abi3\.)", str(self._name)):
                    raise AttributeError(f"function {name!r} not found")
                return super().__getitem__(name)

        return Library

    ctypes.CDLL = only_start(ctypes.CDLL)  # type: ignore[misc]
    ctypes.PyDLL = only_start(ctypes.PyDLL)  # type: ignore[misc]
    shared = os.environ.get("WITHOUT_POSIX_LZ4", "")
    ctypes.util.find_library = lambda name: shared if shared and name == "lz4" else None


def main() -> None:
    behave_otherwise()
    take_away()
    hide_what_extensions_hold()
    from erofs_edge.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
