# SPDX-License-Identifier: Apache-2.0
"""Extraction in forked processes: the same result as with threads, and the same end if something fails."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from reader_trees import make_tree, mkfs
from treediff import diff, scan

from erofs_edge.erofs import extract as extraction
from erofs_edge.erofs import extracted
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.extracted import Batch
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsEdgeError, ErofsFormatError
from erofs_edge.task_processes import TASK_MAX, in_processes

Oracle = Callable[[str], str]


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Forks even for small images, whatever threads the test runner has; yields how many processes were forked."""
    counts: list[int] = []

    def counted(
        tasks: Iterable[object], count: int, work: Callable[[int, Iterator[object]], Iterator[object]]
    ) -> object:
        counts.append(count)
        return in_processes(tasks, count, work)

    monkeypatch.setattr(extraction, "_WORTH_FORKING", 0)
    monkeypatch.setattr(extraction, "may_fork", lambda: True)
    monkeypatch.setattr(extraction, "in_processes", counted)
    return counts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def path(source: Path, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    options = ["-zlz4", "-C16384", "-Efragments"]
    return mkfs(oracle("mkfs.erofs-1.9"), tmp_path_factory.mktemp("images") / "image", source, options)


def test_the_result_is_that_of_threads(path: Path, source: Path, tmp_path: Path, forks: list[int]) -> None:
    seen: list[int] = []
    with Image(path) as image:
        report = extract(image, tmp_path / "out", jobs=3, progress=lambda done, _: seen.append(done))
        assert forks == [3]
        assert report == extract(image, tmp_path / "threads", jobs=3, processes=False)
    assert forks == [3]
    assert seen[-1] == report.data_bytes == max(seen) > 0
    assert diff(scan(tmp_path / "out"), scan(source)) == []


def test_data_that_does_not_decode(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    with Image(path) as image:
        last = [extent for extent in image.extents(image.lookup("long")) if extent.kind is Kind.ENCODED][-1]
    data[last.address : last.address + last.size] = bytes(last.size)
    (tmp_path / "image").write_bytes(data)
    with Image(tmp_path / "image") as image, pytest.raises(ErofsFormatError, match="pcluster") as caught:
        extract(image, tmp_path / "out", jobs=2)
    assert caught.value.where == f"offset {last.address:#x}"
    assert os.listdir(tmp_path) == ["image"]


def test_a_full_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(extracted, "write_all", full)
    with Image(path) as image, pytest.raises(CapacityError, match="No space left"):
        extract(image, tmp_path / "out", jobs=2)
    assert os.listdir(tmp_path) == []


def test_a_process_that_cannot_be_started(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [os.fork]

    def fork() -> int:
        if not left:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return left.pop()()

    monkeypatch.setattr(os, "fork", fork)
    before = os.listdir("/proc/self/fd")
    with Image(path) as image, pytest.raises(ErofsEdgeError, match="cannot start a process"):
        extract(image, tmp_path / "out", jobs=2)
    assert os.listdir(tmp_path) == [] and len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_that_is_killed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracted, "write_all", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with Image(path) as image, pytest.raises(ErofsEdgeError, match="was killed"):
        extract(image, tmp_path / "out", jobs=2)
    assert os.listdir(tmp_path) == []


def test_processes_end_with_one_that_is_killed() -> None:
    script = (
        "import os, signal, time\n"
        "from erofs_edge.task_processes import in_processes\n"
        "def work(number, tasks):\n"
        "    if number: yield 0\n"
        "    time.sleep(300)\n"
        "for _ in in_processes([], 2, work): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL  # and whoever had its output open is gone, too


def test_a_process_that_is_late_ends_too() -> None:
    """Its parent was killed before the child could ask to be notified of that."""
    script = (
        "import os, signal, time\n"
        "from erofs_edge import task_processes\n"
        "ask = task_processes.end_with_parent\n"
        "def late(parent): time.sleep(0.5); ask(parent)\n"
        "task_processes.end_with_parent = late\n"
        "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "list(task_processes.in_processes([], 2, lambda *_: time.sleep(300)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_processes_share_the_account_of_what_may_be_written(path: Path, tmp_path: Path, forks: list[int]) -> None:
    with Image(path) as image:
        files = {inode.nid: inode for _, inode in image.walk() if stat.S_ISREG(inode.mode)}
        size = sum(len(data) for inode in files.values() for _, data in image.stream(inode))
        extract(image, tmp_path / "just", jobs=3, limit=size)
        with pytest.raises(ErofsFormatError, match="limit"):
            extract(image, tmp_path / "out", jobs=3, limit=size - 1)
    assert forks == [3, 3]
    assert os.listdir(tmp_path) == ["just"]


def test_every_task_is_done_once_and_only_as_processes_take_them() -> None:
    """Slow processes hold up whoever makes the tasks: not all are in memory at once."""
    made: list[int] = []

    def tasks() -> Iterator[tuple[int, bytes]]:
        for number in range(100):
            made.append(number)
            yield number, bytes(TASK_MAX // 2)

    def work(_number: int, tasks: Iterator[tuple[int, bytes]]) -> Iterator[int]:
        for number, data in tasks:
            assert not any(data)
            yield number

    results = in_processes(tasks(), 3, work)
    done = [next(results)]
    assert len(made) < 50
    assert sorted(done + list(results)) == made == list(range(100))


def test_results_larger_than_a_pipe_arrive() -> None:
    """While the caller sends tasks, processes report: neither waits for the other."""

    def work(number: int, tasks: Iterator[bytes]) -> Iterator[bytes]:
        for task in tasks:
            yield bytes([number]) * (1 << 20) + task

    results = list(in_processes([b"%d" % n for n in range(64)], 2, work))
    assert sorted(int(result[1 << 20 :]) for result in results) == list(range(64))
    assert all(result[: 1 << 20].count(result[0]) == 1 << 20 for result in results)


def test_a_failure_ends_all_even_while_tasks_are_left() -> None:
    def work(number: int, tasks: Iterator[int]) -> Iterator[int]:
        for task in tasks:
            if task == 5:
                raise CapacityError("no room", where=f"process {number}")
            yield task

    def tasks() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    with pytest.raises(CapacityError, match="no room"):
        list(in_processes(tasks(), 2, work))


@pytest.mark.parametrize("error", [ErofsFormatError("directories are nested"), BlockingIOError(), ConnectionError()])
def test_a_failure_to_make_tasks_ends_all(error: Exception) -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(type(error)):
        list(in_processes(tasks(), 2, lambda _number, tasks: tasks))


def test_tasks_fit_messages_and_are_worth_them(path: Path) -> None:
    """Whatever the lengths of names and paths; towards the end of the image there are fewer files in each."""
    choice = random.Random(1).choice
    batches = [
        Batch(
            b"p" * choice([1, 100, extraction._PATH_MAX]),
            [(b"%03d" % at + b"n" * choice([0, 252]), (1 << 63) + at, 7) for at in range(choice([0, 1, 16]))],
            (1 << 63) + number,
        )
        for number in range(2000)
    ]
    with Image(path) as image:
        least = []
        for _ in range(2):
            tasks = list(extraction._Extraction(image, b"", True, None, 2)._tasks(iter(batches)))
            assert [batch for task in tasks for batch in task] == batches
            assert max(len(pickle.dumps(task)) for task in tasks) <= TASK_MAX
            least.append(min(sum(len(batch.entries) or 1 for batch in task) for task in tasks[:-2]))
            raw = image.superblock.raw._replace(inos=1 << 40)
            image.superblock = dataclasses.replace(image.superblock, raw=raw)
        assert least[0] == 16 < least[1]
