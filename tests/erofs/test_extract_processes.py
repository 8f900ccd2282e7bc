# SPDX-License-Identifier: Apache-2.0
"""Extraction in forked processes: the same result as with threads, and the same end if something fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from reader_trees import make_tree, mkfs
from treediff import diff, scan

from erofs_edge.erofs import extract as extraction
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.extract import extract
from erofs_edge.erofs.processes import forked
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ErofsEdgeError, ErofsFormatError

Oracle = Callable[[str], str]


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Forks even for small images, whatever threads the test runner has; yields how many shares were forked."""
    shares: list[int] = []

    def counted(parts: list[list[object]], work: Callable[[object], object]) -> object:
        shares.append(len(parts))
        return forked(parts, work)

    monkeypatch.setattr(extraction, "_WORTH_FORKING", 0)
    monkeypatch.setattr(extraction, "may_fork", lambda: True)
    monkeypatch.setattr(extraction, "forked", counted)
    return shares


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

    monkeypatch.setattr(extraction, "_write_all", full)
    with Image(path) as image, pytest.raises(CapacityError, match="No space left"):
        extract(image, tmp_path / "out", jobs=2)
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_write_all", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with Image(path) as image, pytest.raises(ErofsEdgeError, match="was killed"):
        extract(image, tmp_path / "out", jobs=2)
    assert os.listdir(tmp_path) == []


def test_processes_end_with_one_that_is_killed() -> None:
    script = (
        "import os, signal, time\n"
        "from erofs_edge.erofs.processes import forked\n"
        "def work(task):\n"
        "    if task: time.sleep(300)\n"
        "for _ in forked([[0, 1], [0, 1]], work): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL  # and whoever had its output open is gone, too


def test_a_process_that_is_late_ends_too() -> None:
    """Its parent was killed before the child could ask to be notified of that."""
    script = (
        "import os, signal, time\n"
        "from erofs_edge.erofs import processes\n"
        "ask = processes.end_with_parent\n"
        "def late(parent): time.sleep(0.5); ask(parent)\n"
        "processes.end_with_parent = late\n"
        "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "list(processes.forked([[0], [0]], lambda task: time.sleep(300)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_where_the_limit_could_be_passed_threads_share_its_account(
    path: Path, tmp_path: Path, forks: list[int]
) -> None:
    with Image(path) as image, pytest.raises(ErofsFormatError, match="limit"):
        extract(image, tmp_path / "out", jobs=2, limit=1_000_000)
    assert forks == []
    assert os.listdir(tmp_path) == []
