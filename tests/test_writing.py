# SPDX-License-Identifier: Apache-2.0
"""Files that have their name only when they are complete: what is there before, afterwards, and after a failure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from erofs_edge.errors import CapacityError, ErofsEdgeError, UsageError
from erofs_edge.writing import NO_SPACE, beside, refuse_unwritable, settled, sparse_beside


def test_the_name_is_given_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with beside(out, "it") as path:
        path.write_bytes(b"new")
        assert out.read_bytes() == b"old" and path.parent == tmp_path
    assert out.read_bytes() == b"new"
    with sparse_beside(out, 10_000_000, "it") as fd:
        os.pwrite(fd, b"x", 5_000_000)
    assert out.stat().st_size == 10_000_000 and out.stat().st_blocks * 512 < 1_000_000
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [*(OSError(number, "full") for number in NO_SPACE), OSError(errno.EIO, "broken")])
def test_a_failure_leaves_what_was_there(error: OSError, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with pytest.raises((CapacityError, OSError)) as caught, sparse_beside(out, 100, "the answer"):
        raise error
    if error.errno in NO_SPACE:
        assert isinstance(caught.value, CapacityError)
        assert (caught.value.message, caught.value.where) == ("no space left for the answer", str(out))
    else:
        assert caught.value is error
    assert os.listdir(tmp_path) == ["out"] and out.read_bytes() == b"old"


def test_a_device_or_a_pipe_keeps_its_name(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    (tmp_path / "link").symlink_to("pipe")
    before = sorted(os.listdir(tmp_path))
    for out in (pipe, folder, tmp_path / "link"):
        with pytest.raises(UsageError, match="not a regular file") as caught, beside(out, "it") as path:
            path.write_bytes(b"new")
        assert caught.value.where == str(out)
    assert sorted(os.listdir(tmp_path)) == before and pipe.is_fifo()


def test_what_a_symlink_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("new", "old"):
        link, file = tmp_path / name, tmp_path / "far" / name
        link.symlink_to(f"far/{name}")
        if name == "old":
            file.write_bytes(b"old")
        with beside(link, "it") as path:
            path.write_bytes(b"it")
            assert path.parent == file.parent
        assert link.is_symlink() and file.read_bytes() == b"it" and settled(link) == file
    assert sorted(os.listdir(tmp_path / "far")) == ["new", "old"]


def test_ctrl_c_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "out", "it") as path:
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for place in (file, file / "below", file / "far" / "below"):
        with pytest.raises(UsageError, match="no folder") as caught:
            refuse_unwritable(place)
        assert caught.value.where == str(file)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "new" / "below", Path("new"), Path()):
        refuse_unwritable(place)
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ErofsEdgeError, match="cannot write: no permission") as denied:
        refuse_unwritable(tmp_path / "new")
    assert denied.value.where == str(tmp_path)
