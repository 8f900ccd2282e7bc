# SPDX-License-Identifier: Apache-2.0
"""Extract the content of an image into a directory, safely.

Nothing in the image can reach outside the destination: every file is created through the descriptor of its own
directory, which is opened one name at a time without following symlinks, and must not exist before (`folders`).
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from erofs_edge.erofs import folders
from erofs_edge.erofs.backing import place
from erofs_edge.erofs.dirents import Dirent
from erofs_edge.erofs.folders import Folder, Folders
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.output_limit import output_limit_of
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsEdgeError, ErofsFormatError
from erofs_edge.forks import in_processes, may_fork
from erofs_edge.names import fsdecode, fsencode
from erofs_edge.writing import NO_SPACE, folder_beside

if TYPE_CHECKING:
    from concurrent.futures import Future

_BATCH_FILES = 16
_REPORTED_TASKS = 64  # of a process; each report costs a message
_FILE_WEIGHT, _WORTH_FORKING = 32 << 10, 64 << 20
_PATH_MAX = 2 << 10  # bytes; with it, the batches of a task are never too large for a message to a process
_SKIPPED_MAX = 1000
_NO_SUCH_NAMES = "this system has no such names"
_NO_PRIVILEGE = 1314  # ERROR_PRIVILEGE_NOT_HELD on Windows

Progress = Callable[[int, int], None]


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


def extract(
    image: Image,
    destination: Path,
    *,
    path: bytes | str = b"/",
    owners: bool | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    processes: bool | None = None,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the directory `path` of the image to `destination`, which must not exist or be an empty directory.

    owners   keep uid and gid; None: if root
    limit    bytes of content to write at most; None: what an image of this size can plausibly hold
    processes  False: threads only; None: forked processes where that is safe and pays off (the result is the same)

    A new destination appears once it is complete; on any failure nothing of it remains. Modes, nanosecond times,
    xattrs, hard links and holes are kept; what cannot be kept (device nodes without root) is reported. Windows has
    neither modes nor owners, which is not reported. Raises ErofsFormatError, CapacityError, ErofsEdgeError.
    """
    top = image.lookup(path)
    if not top.is_dir:
        raise ErofsEdgeError(
            "not a directory inside the image", where=fsdecode(path), hint="for a file: erofs-edge fs cat"
        )
    try:
        with _destination(destination) as root:
            if owners is None:
                owners = hasattr(os, "geteuid") and os.geteuid() == 0
            extraction = _Extraction(image, root, owners, limit, jobs or min(4, os.cpu_count() or 1))
            try:
                extraction.run(top, processes is not False, progress)
            except BaseException:
                extraction.undo()
                raise
            finally:
                extraction.opener.close()
    except OSError as error:
        raise _writing(error, destination) from error
    return extraction.report


def _writing(error: OSError, destination: Path) -> ErofsEdgeError:
    message = f"cannot write: {error.strerror or error}"
    kind = CapacityError if error.errno in NO_SPACE else ErofsEdgeError
    return kind(message, where=str(destination))


@contextmanager
def _destination(destination: Path) -> Iterator[int | bytes]:
    """Open the directory to fill: the destination if it exists, else one beside it that is renamed at the end."""
    there = destination.is_dir()
    if there and any(destination.iterdir()):
        raise ErofsEdgeError(
            "the destination is not empty", where=str(destination), hint="name a directory that does not exist"
        )
    if not there and (destination.is_symlink() or destination.exists()):
        raise ErofsEdgeError("the destination is not a directory", where=str(destination))
    with nullcontext(destination) if there else folder_beside(destination) as target:
        with folders.opened(target) as root:
            yield root
        if not there:
            target.rename(destination)


class _Batch(NamedTuple):
    """Some entries of one directory, none of them directories: name, nid and type of each."""

    directory: bytes
    entries: list[tuple[bytes, int, int]]


class _Allowance:
    """Bytes of content that may still be written, counted together by threads and forked processes.

    `counter`: the one that this process uses; 0 is that of the process which forks.
    """

    def __init__(self, limit: int, processes: int) -> None:
        self._limit = limit
        self._spent = memoryview(mmap.mmap(-1, 8 * (1 + processes))).cast("Q")
        self._lock = threading.Lock()
        self.counter = 0

    def spend(self, size: int) -> bool:
        """Count `size` bytes. Return whether they were allowed."""
        with self._lock:
            self._spent[self.counter] += size
            return sum(self._spent) <= self._limit


class _Extraction:
    def __init__(self, image: Image, root: int | bytes, owners: bool, limit: int | None, jobs: int) -> None:
        self.image, self.owners, self.jobs = image, owners, jobs
        self.opener = Folders(root)
        self.report = ExtractReport()
        self.directories: list[tuple[bytes, DiskInode]] = []
        self.allowance = _Allowance(output_limit_of(image) if limit is None else limit, jobs)

    def run(self, top: DiskInode, processes: bool, progress: Progress | None) -> None:
        """Create directories here as the walk reaches them, and their files in any process or thread; then hard links,
        then the metadata of directories, deepest first."""
        links: list[tuple[bytes, bytes]] = []
        for report in self._written(self._batches(top, links), processes):
            self.report.add(report)
            if progress is not None:
                progress(self.report.data_bytes, 0)
        for first, path in links:
            self._link(first, path)
        for path, inode in reversed(self.directories):
            with self.opener.open(path) as folder:
                self._metadata(folder.prefix if folder.fd is None else folder.fd, path, inode, self.report)
        self.report.skipped.sort()

    def _written(self, batches: Iterator[_Batch], processes: bool) -> Iterable[ExtractReport]:
        if self.jobs == 1:
            return map(self._write_batch, batches)
        info = self.image.superblock
        if processes and info.size + info.raw.inos * _FILE_WEIGHT >= _WORTH_FORKING and may_fork():
            return in_processes(self._tasks(batches), self.jobs, self._write_tasks)
        return self._on_threads(batches)

    def _tasks(self, batches: Iterable[_Batch]) -> Iterator[list[_Batch]]:
        """Yield batches together that are worth a message to a process; write those that do not fit one."""
        task: list[_Batch] = []
        files = 0
        for batch in batches:
            if len(batch.directory) > _PATH_MAX:
                self.report.add(self._write_batch(batch))
                continue
            task.append(batch)
            files += len(batch.entries)
            if files >= _BATCH_FILES:
                yield task
                task, files = [], 0
        yield task

    def _on_threads(self, batches: Iterable[_Batch]) -> Iterator[ExtractReport]:
        from concurrent.futures import ThreadPoolExecutor

        pending: deque[Future[ExtractReport]] = deque()
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for batch in batches:
                    pending.append(pool.submit(self._write_batch, batch))
                    if len(pending) > 4 * self.jobs:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def undo(self) -> None:
        """Remove what was written, as far as possible, one directory after the other, so that no depth is too deep."""
        for path, _ in self.directories[1:]:
            with suppress(OSError), self.opener.open(path) as folder:
                if folder.fd is not None:
                    os.fchmod(folder.fd, 0o700)
        for path, _ in reversed(self.directories):
            with suppress(OSError), self.opener.open(path) as folder:
                folders.empty(folder)

    def _batches(self, top: DiskInode, links: list[tuple[bytes, bytes]]) -> Iterator[_Batch]:
        """Create directories, set hard links aside, and yield the other entries of each directory in batches."""
        first_names: dict[int, bytes] = {}
        left_out: set[bytes] = set()
        for path, inode, entries in self.image.directories(top):
            prefix = path + b"/" if path else b""
            if not self._make_directory(path, inode, left_out):
                for entry in entries:
                    self.report.skip(prefix + entry.name, _NO_SUCH_NAMES)
                continue
            batch: list[tuple[bytes, int, int]] = []
            for entry in entries:
                there = prefix + entry.name
                if not folders.is_possible(entry.name):
                    self.report.skip(there, _NO_SUCH_NAMES)
                elif (first := first_names.setdefault(entry.nid, there)) is not there:
                    self.image.child(entry)
                    links.append((first, there))
                else:
                    batch.append(entry[:])
            for start in range(0, len(batch), _BATCH_FILES):
                yield _Batch(path, batch[start : start + _BATCH_FILES])

    def _make_directory(self, path: bytes, inode: DiskInode, left_out: set[bytes]) -> bool:
        """Create a directory. Return whether that was possible."""
        parent, _, name = path.rpartition(b"/")
        if path and (parent in left_out or not folders.is_possible(name)):
            self.report.skip(path, _NO_SUCH_NAMES)
            left_out.add(path)
            return False
        if path:
            with self.opener.open(parent) as folder:
                os.mkdir(folder.prefix + name, 0o777 if folder.fd is None else 0o700, dir_fd=folder.fd)
        self.directories.append((path, inode))
        self.report.directories += 1
        return True

    def _write_tasks(self, number: int, tasks: Iterator[list[_Batch]]) -> Iterator[ExtractReport]:
        """Write what process `number` gets."""
        self.allowance.counter = 1 + number
        report = ExtractReport()
        for done, task in enumerate(tasks, 1):
            for batch in task:
                report.add(self._write_batch(batch))
            if not done % _REPORTED_TASKS:
                yield report
                report = ExtractReport()
        yield report

    def _write_batch(self, batch: _Batch) -> ExtractReport:
        report = ExtractReport()
        prefix = batch.directory + b"/" if batch.directory else b""
        with self.opener.open(batch.directory) as folder:
            for entry in starmap(Dirent, batch.entries):
                inode = self.image.child(entry)
                if stat.S_ISREG(inode.mode):
                    self._write_file(folder, entry.name, prefix + entry.name, inode, report)
                else:
                    self._write_other(folder, entry.name, prefix + entry.name, inode, report)
        return report

    def _write_file(self, folder: Folder, name: bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        fd = os.open(folder.prefix + name, folders.CREATE, 0o600, dir_fd=folder.fd)
        try:
            position = 0
            for offset, data in self.image.stream_lent(inode):
                self._spend(len(data), inode)
                if not data[0] and not data[-1] and not bytes(data).strip(b"\0"):
                    continue
                if offset != position:
                    os.lseek(fd, offset, os.SEEK_SET)
                _write_all(fd, data)
                position = offset + len(data)
                report.data_bytes += len(data)
            if position != inode.size:
                os.ftruncate(fd, inode.size)
            if folder.fd is not None:
                self._metadata(fd, path, inode, report)
        finally:
            os.close(fd)
        if folder.fd is None:  # closing a file that was written to changes its time
            self._metadata(folder.prefix + name, path, inode, report)
        report.files += 1

    def _spend(self, size: int, inode: DiskInode) -> None:
        if not self.allowance.spend(size):
            raise ErofsFormatError(
                "the image decodes to more data than the limit allows",
                where=place(inode.offset),
                hint="if you trust the image, raise the limit with --max-bytes",
            )

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
        if self.owners:
            _keep(
                report, path, "owner",
                lambda: os.chown(there, inode.uid, inode.gid, dir_fd=folder.fd, follow_symlinks=False),
            )  # fmt: skip
        if not stat.S_ISLNK(inode.mode):
            os.chmod(there, stat.S_IMODE(inode.mode), dir_fd=folder.fd)
        self._xattrs(there if folder.fd is None else b"/proc/self/fd/%d/%s" % (folder.fd, name), path, inode, report)
        ns = (inode.mtime_ns, inode.mtime_ns)
        _keep(report, path, "time", lambda: os.utime(there, ns=ns, dir_fd=folder.fd, follow_symlinks=False))

    def _write_symlink(
        self, folder: Folder, there: bytes, path: bytes, inode: DiskInode, report: ExtractReport
    ) -> bool:
        """Create a symlink. Return whether that was possible."""
        try:
            target = self.image.readlink(inode).replace(b"/", fsencode(os.sep))
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
        if self.owners:
            _keep(report, path, "owner", lambda: os.chown(target, inode.uid, inode.gid))
        if isinstance(target, int):
            os.fchmod(target, stat.S_IMODE(inode.mode))
        self._xattrs(target, path, inode, report)
        _keep(report, path, "time", lambda: os.utime(target, ns=(inode.mtime_ns, inode.mtime_ns)))

    def _xattrs(self, target: int | bytes, path: bytes, inode: DiskInode, report: ExtractReport) -> None:
        if not inode.xattr_size:
            return
        setxattr: Any = getattr(os, "setxattr", None)  # Linux only
        for name, value in self.image.xattrs(inode).items():
            what = f"xattr {fsdecode(name)}"
            if setxattr is None:
                report.skip(path, f"{what}: not on this system")
            elif isinstance(target, int):
                _keep(report, path, what, partial(setxattr, target, name, value))
            else:
                _keep(report, path, what, partial(setxattr, target, name, value, follow_symlinks=False))

    def _link(self, first: bytes, path: bytes) -> None:
        """Create another name for a file that was written as `first`."""
        from_directory, _, from_name = first.rpartition(b"/")
        to_directory, _, to_name = path.rpartition(b"/")
        try:
            with self.opener.open(from_directory) as source, self.opener.open(to_directory) as target:
                names = source.prefix + from_name, target.prefix + to_name
                if source.fd is None:
                    os.link(*names)
                else:
                    os.link(*names, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
        except FileNotFoundError:
            self.report.skip(path, "hard link to a file that was left out")
            return
        self.report.hard_links += 1


def _keep(report: ExtractReport, path: bytes, what: str, keep: Callable[[], None]) -> None:
    """Set something that the host may refuse; a refusal is reported."""
    try:
        keep()
    except (AttributeError, NotImplementedError):
        report.skip(path, f"{what}: not on this system")
    except (OSError, OverflowError) as error:
        report.skip(path, f"{what}: {getattr(error, 'strerror', None) or error}")


def _write_all(fd: int, data: bytes | memoryview) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
