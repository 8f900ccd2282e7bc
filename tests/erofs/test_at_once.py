# SPDX-License-Identifier: Apache-2.0
"""Small files read without releasing the interpreter's lock: only complete ones that have not changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.erofs import at_once
from erofs_edge.erofs.contents import read_piece
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileContent


@pytest.fixture(params=["with the lock", "alone"])
def read(request: pytest.FixtureRequest) -> Callable[[bytes, int], bytes | None]:
    found = at_once.reader() if request.param == "with the lock" else at_once.read_alone
    assert found is not None, "Linux has the call"
    return found


@pytest.mark.parametrize("size", [1, 4095, 4096, at_once.SMALL])
def test_whole_files(tmp_path: Path, size: int, read: Callable[[bytes, int], bytes | None]) -> None:
    path, data = tmp_path / "file", os.urandom(size)
    path.write_bytes(data)
    descriptors = len(os.listdir("/proc/self/fd"))
    got = read(os.fsencode(path), size)
    # memory pressure may drop the pages in between: then nothing is read here, and the usual way is taken
    assert got in (data, None)
    assert read_piece(FileContent(path, size), 0, size, "here") == data
    for other in (size - 1, size + 1):
        assert read(os.fsencode(path), other) is None, "a file of another size"
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_is_no_file(tmp_path: Path, read: Callable[[bytes, int], bytes | None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        assert read(os.fsencode(tmp_path / name), 10) is None
    with pytest.raises(SourceError, match="cannot read"):
        read_piece(FileContent(tmp_path / "missing", 10), 0, 10, "here")


def test_changed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    for size in (10, 12):
        with pytest.raises(SourceError, match="changed its size"):
            read_piece(FileContent(path, size), 0, size, "here")


def test_who_is_alone_reads_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "_is_alone", False)
    assert at_once.reader() is not at_once.read_alone
    at_once.be_alone()
    assert at_once.reader() is at_once.read_alone


def test_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "reader", lambda: None)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_piece(FileContent(path, 3), 0, 3, "here") == b"abc"
