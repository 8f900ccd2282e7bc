# SPDX-License-Identifier: Apache-2.0
"""The check in forked processes: the same findings, in the same order, as in one process or in threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from reader_trees import mkfs, noise, text

from erofs_edge.erofs import check as checking
from erofs_edge.erofs.check import FINDINGS_MAX, check
from erofs_edge.erofs.extents import Kind
from erofs_edge.erofs.read import Image
from erofs_edge.errors import ErofsEdgeError

Oracle = Callable[[str], str]


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    root = tmp_path_factory.mktemp("check-processes")
    (root / "source").mkdir()
    for number in range(40):
        (root / f"source/{number:02}").write_bytes(text(20_000 + number) if number % 4 else noise(8191 - number // 4))
    return mkfs(oracle("mkfs.erofs-1.9"), root / "image", root / "source", ["-zlz4hc", "-C4096"])


@pytest.fixture
def damaged(image_path: Path, tmp_path: Path) -> Path:
    """The same image, in which no pcluster decodes and the padding of raw data is not zero."""
    data = bytearray(image_path.read_bytes())
    with Image(image_path) as image:
        for _, inode in image.walk():
            for extent in image.extents(inode):
                if extent.kind is Kind.ENCODED:
                    data[extent.address : extent.address + extent.size] = b"\xff" * extent.size
                elif extent.size > extent.length:
                    data[extent.address + extent.size - 1] = 1
    (tmp_path / "damaged").write_bytes(data)
    return tmp_path / "damaged"


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes even for small images, whatever threads the test runner has, and many tasks."""
    monkeypatch.setattr(checking, "_WORTH_FORKING", 0)
    monkeypatch.setattr(checking, "_BATCH_EXTENTS", 3)
    monkeypatch.setattr(checking, "may_fork", lambda: True)


@pytest.mark.usefixtures("forks")
def test_nothing_is_found_in_a_good_image(image_path: Path) -> None:
    report = check(image_path, jobs=3)
    assert report.findings == []
    assert report.data_bytes == check(image_path, jobs=1).data_bytes > 0


@pytest.mark.usefixtures("forks")
def test_findings_are_those_of_one_process(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(damaged, jobs=3).findings
    assert found == check(damaged, jobs=1).findings
    assert {finding.path for finding in found} == {f"/{number:02}" for number in range(40)}
    monkeypatch.setattr(checking, "may_fork", lambda: False)
    assert found == check(damaged, jobs=3).findings


@pytest.mark.usefixtures("forks")
def test_the_first_of_very_many_findings_are_reported(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "FINDINGS_MAX", 7)
    found = check(damaged, jobs=3).findings
    assert len(found) == 7 < FINDINGS_MAX
    assert found == check(damaged, jobs=1).findings


@pytest.mark.usefixtures("forks")
def test_a_process_that_is_killed(image_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "decode_lent", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ErofsEdgeError, match="was killed"):
        check(image_path, jobs=2)
