# SPDX-License-Identifier: Apache-2.0
"""Extract the content of an image into a directory, safely.

Nothing in the image can reach outside the destination: every file is created through the descriptor of its own
directory, which is opened one name at a time without following symlinks, and must not exist before (`folders`).
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from erofs_edge.erofs import folders
from erofs_edge.erofs.extracted import Allowance, Batch, ExtractReport, Writer
from erofs_edge.erofs.folders import Folders
from erofs_edge.erofs.inode import DiskInode
from erofs_edge.erofs.output_limit import output_limit_of
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsEdgeError
from erofs_edge.forks import may_fork
from erofs_edge.names import fsdecode
from erofs_edge.task_processes import TASK_MAX, in_processes
from erofs_edge.writing import NO_SPACE, folder_beside

if TYPE_CHECKING:
    from concurrent.futures import Future

_BATCH_FILES = 16
_REPORTED_TASKS = 16  # of a process; each report costs a message
_FILE_WEIGHT, _WORTH_FORKING = 32 << 10, 64 << 20
_TASK_FILES, _TASKS_LEFT = 64, 32
# bytes; with these, the batches of a task are never too large for a message to a process
_PATH_MAX, _TASK_BYTES, _ENTRY_BYTES = 2 << 10, TASK_MAX // 2, 32
_NO_SUCH_NAMES = "this system has no such names"
_ALL_OF_OWNER = stat.S_IRWXU

Progress = Callable[[int, int], None]


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
    with nullcontext(destination.resolve()) if there else folder_beside(destination) as target:
        with folders.opened(target) as root:
            yield root
        if not there:
            target.rename(destination)


class _Extraction:
    def __init__(self, image: Image, root: int | bytes, owners: bool, limit: int | None, jobs: int) -> None:
        self.image, self.jobs = image, jobs
        self.opener = Folders(root)
        self.report = ExtractReport()
        self.directories: list[tuple[bytes, DiskInode]] = []
        self.unfinished: list[tuple[bytes, DiskInode]] = []
        self.allowance = Allowance(output_limit_of(image) if limit is None else limit, jobs)
        self.writer = Writer(image, self.opener, owners, self.allowance)

    def run(self, top: DiskInode, processes: bool, progress: Progress | None) -> None:
        """Create directories here as the walk reaches them, and their files in any process or thread; then hard links,
        then the metadata of directories that had to wait for them, deepest first."""
        links: list[tuple[bytes, bytes]] = []
        for report in self._written(self._batches(top, links), processes):
            self.report.add(report)
            if progress is not None:
                progress(self.report.data_bytes, 0)
        for first, path in links:
            self._link(first, path)
        for path, inode in reversed(self.unfinished):
            self.writer.finish(self.opener.borrow(path), path, inode, self.report)
        self.report.skipped.sort()

    def _written(self, batches: Iterator[Batch], processes: bool) -> Iterable[ExtractReport]:
        if self.jobs == 1:
            return map(self._write_batch, batches)
        info = self.image.superblock
        if processes and info.size + info.raw.inos * _FILE_WEIGHT >= _WORTH_FORKING and may_fork():
            return in_processes(self._tasks(batches), self.jobs, self._write_tasks)
        return self._on_threads(batches)

    def _tasks(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Yield batches together that are worth a message to a process, fewer towards the end, so that all processes
        have work until then; write those that do not fit a message."""
        task: list[Batch] = []
        files = size = 0
        left = self.image.superblock.raw.inos
        for batch in batches:
            directory, entries, _ = batch
            if len(directory) > _PATH_MAX:
                self.writer.write(batch, self.report)
                continue
            size += len(directory) + sum(len(name) + _ENTRY_BYTES for name, _, _ in entries)
            files += len(entries) or 1
            task.append(batch)
            if size >= _TASK_BYTES or files >= min(_TASK_FILES, max(_BATCH_FILES, left // _TASKS_LEFT)):
                yield task
                left -= files
                task, files, size = [], 0, 0
        yield task

    def _on_threads(self, batches: Iterable[Batch]) -> Iterator[ExtractReport]:
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

    def _batches(self, top: DiskInode, links: list[tuple[bytes, bytes]]) -> Iterator[Batch]:
        """Create directories, set hard links aside, and yield the other entries of each directory in batches."""
        first_names: dict[int, bytes] = {}
        left_out: set[bytes] = set()
        for path, inode, entries, is_leaf in self.image.directories(top):
            prefix = path + b"/" if path else b""
            if not self._make_directory(path, inode, left_out):
                for entry in entries:
                    self.report.skip(prefix + entry.name, _NO_SUCH_NAMES)
                continue
            batch: list[tuple[bytes, int, int]] = []
            links_before = len(links)
            for entry in entries:
                there = prefix + entry.name
                if not folders.is_possible(entry.name):
                    self.report.skip(there, _NO_SUCH_NAMES)
                elif (first := first_names.setdefault(entry.nid, there)) is not there:
                    self.image.child(entry)
                    links.append((first, there))
                else:
                    batch.append(entry[:])
            one = is_leaf and len(batch) <= _BATCH_FILES and len(links) == links_before
            # the end, and `undo`, must still be able to enter it
            if one and path and inode.mode & _ALL_OF_OWNER == _ALL_OF_OWNER:
                yield Batch(path, batch, inode.nid)
                continue
            self.unfinished.append((path, inode))
            for start in range(0, len(batch), _BATCH_FILES):
                yield Batch(path, batch[start : start + _BATCH_FILES])

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

    def _write_batch(self, batch: Batch) -> ExtractReport:
        report = ExtractReport()
        self.writer.write(batch, report)
        return report

    def _write_tasks(self, number: int, tasks: Iterator[list[Batch]]) -> Iterator[ExtractReport]:
        """Write what process `number` gets."""
        self.allowance.counter = 1 + number
        self.writer.be_alone()
        report = ExtractReport()
        for done, task in enumerate(tasks, 1):
            for batch in task:
                self.writer.write(batch, report)
            if not done % _REPORTED_TASKS:
                yield report
                report = ExtractReport()
        yield report

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
