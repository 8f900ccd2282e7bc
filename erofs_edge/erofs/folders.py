# SPDX-License-Identifier: Apache-2.0
"""Folders below a root, for writing files: opened through descriptors, one name at a time and never through a symlink.

On systems without such descriptors (Windows), they are accessed by path. Only there, nobody else may create anything in
them meanwhile, and not every name is valid.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from erofs_edge.positions import BINARY

BY_PATHS = os.open not in os.supports_dir_fd
"""whether this system lacks such descriptors; it then has neither modes nor owners"""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_KEPT_OPEN = 128
_FORBIDDEN = frozenset('<>:"/\\|?*') | {chr(code) for code in range(32)}
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{port}{number}" for port in ("COM", "LPT") for number in (*range(10), "\xb9", "\xb2", "\xb3")}


def is_possible(name: bytes) -> bool:
    """Whether this system can have a file with this name, without it meaning another path, a stream or a device."""
    if not BY_PATHS:
        return True
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    stem = text.split(".")[0].rstrip(" ").upper()
    return not _FORBIDDEN.intersection(text) and text[-1] not in " ." and stem not in _DEVICES


class Folder(NamedTuple):
    """Its files are ``prefix + name``, used with ``dir_fd=fd``."""

    prefix: bytes
    fd: int | None


class Folders:
    """Opens folders below an open root and keeps the most recent ones open. `root` is a path or a descriptor."""

    def __init__(self, root: int | bytes) -> None:
        self._root = root
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, path: bytes) -> Iterator[Folder]:
        """Open a folder for the duration of the context. Raises OSError."""
        with self._lock:
            prefix, fd = self.borrow(path)
            fd = None if fd is None else os.dup(fd)
        try:
            yield Folder(prefix, fd)
        finally:
            if fd is not None:
                os.close(fd)

    def borrow(self, path: bytes) -> Folder:
        """Open a folder until the next call of this object. Only while no other thread uses it. Raises OSError."""
        root, kept = self._root, self._kept
        if not isinstance(root, int):
            return Folder(b"/".join((root, path, b"") if path else (root, b"")), None)
        known = path
        missing = []
        while known and known not in kept:
            known, _, name = known.rpartition(b"/")
            missing.append(name)
        fd = kept[known] if known else root
        for name in reversed(missing):
            fd = os.open(name, _DIRECTORY, dir_fd=fd)
            known = known + b"/" + name if known else name
            kept[known] = fd
            if len(kept) > _KEPT_OPEN:
                os.close(kept.popitem(last=False)[1])
        if known:
            kept.move_to_end(known)
        return Folder(b"", fd)

    def close(self) -> None:
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()


@contextmanager
def opened(root: Path) -> Iterator[int | bytes]:
    """Open the root for `Folders`. Raises OSError."""
    if BY_PATHS:
        yield os.fsencode(root)
        return
    fd = os.open(root, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def empty(folder: Folder) -> None:
    """Remove the files and empty folders in it, as far as possible. Raises OSError if it cannot be listed."""
    for name in os.listdir(folder.prefix if folder.fd is None else folder.fd):
        path = folder.prefix + os.fsencode(name)
        with suppress(OSError):
            if stat.S_ISDIR(os.stat(path, dir_fd=folder.fd, follow_symlinks=False).st_mode):
                os.rmdir(path, dir_fd=folder.fd)
            else:
                os.unlink(path, dir_fd=folder.fd)
