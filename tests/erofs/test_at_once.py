# SPDX-License-Identifier: Apache-2.0
"""Small files that are read without giving up the interpreter's lock: only whole ones that are as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erofs_edge.erofs import at_once
from erofs_edge.erofs.contents import read_piece
from erofs_edge.errors import SourceError
from erofs_edge.tree import FileContent


@pytest.mark.parametrize("size", [1, 4095, 4096, at_once.SMALL])
def test_whole_files(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "file", os.urandom(size)
    path.write_bytes(data)
    read = at_once.reader()
    assert read is not None, "Linux has the call"
    descriptors = len(os.listdir("/proc/self/fd"))
    got = read(os.fsencode(path), size)
    # memory pressure may drop the pages between the two: then nothing is read, and the usual way does it
    assert got in (data, None)
    assert read_piece(FileContent(path, size), 0, size, "here") == data
    for other in (size - 1, size + 1):
        assert read(os.fsencode(path), other) is None, "a file of another size"
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_is_no_file(tmp_path: Path) -> None:
    read = at_once.reader()
    assert read is not None
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


def test_without_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "reader", lambda: None)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_piece(FileContent(path, 3), 0, 3, "here") == b"abc"
