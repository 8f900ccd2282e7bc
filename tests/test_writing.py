# SPDX-License-Identifier: Apache-2.0
"""Files that have their name only when they are complete: what is there before, afterwards, and after a failure."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from erofs_edge import writing
from erofs_edge.errors import CapacityError, ErofsEdgeError, UsageError
from erofs_edge.writing import (
    NO_SPACE,
    beside,
    folder_beside,
    hidden_name,
    refuse_unwritable,
    scratch_folder,
    settled,
    sparse_beside,
)


def test_the_name_is_given_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with beside(out, "it") as path:
        path.write_bytes(b"new")
        assert out.read_bytes() == b"old" and path != out
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
        with pytest.raises(UsageError, match="not a folder") as caught:
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


def without_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder as one of a file system that has no files without a name."""
    real = os.open

    def refuse(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)


KILLED = """
import errno, os, signal, sys
from pathlib import Path
from erofs_edge import writing
out, how = Path(sys.argv[1]), sys.argv[2]
if how == "named":
    writing._unnamed = lambda out: None
if how == "renaming":
    writing.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with writing.beside(out, "it") as path:
    path.write_bytes(b"half")
    if how != "renaming":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "left"), [("unnamed", 0), ("named", 1), ("renaming", 1)])
def test_what_a_kill_leaves_goes_with_the_next(
    how: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    for _ in range(2):  # not even two of them
        child = subprocess.run([sys.executable, "-c", KILLED, str(out), how], check=False)
        assert child.returncode == -signal.SIGKILL and out.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 1 + left
    for one in os.listdir(tmp_path):
        assert one in ("out", hidden_name(out).name)
    if how == "named":
        without_tmpfile(monkeypatch)
    with beside(out, "it") as path:
        path.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["out"] and out.read_bytes() == b"new"


def test_what_a_living_process_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_tmpfile(monkeypatch)
    out = tmp_path / "out"
    with beside(out, "it") as first, beside(out, "it") as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert os.listdir(tmp_path) == ["out"] and out.read_bytes() == b"first"


def test_what_is_not_ours_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden names are anybody's in a folder like /tmp."""
    without_tmpfile(monkeypatch)
    out, link, pipe = tmp_path / "out", hidden_name(tmp_path / "out", 1), hidden_name(tmp_path / "out", 2)
    (tmp_path / "far").write_bytes(b"far")
    link.symlink_to("far")
    os.mkfifo(pipe)
    with beside(out, "it") as path:
        path.write_bytes(b"new")
    assert out.read_bytes() == b"new" and link.is_symlink() and (tmp_path / "far").read_bytes() == b"far"


def test_names_as_long_as_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        for name in ("n" * 255, "é" * 127):
            for data in (b"new", b"newer"):
                with beside(tmp_path / name, "it") as path:
                    path.write_bytes(data)
                assert (tmp_path / name).read_bytes() == data
        without_tmpfile(monkeypatch)
    assert len(os.listdir(tmp_path)) == 2


def test_without_proc_no_name_could_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with beside(tmp_path / "out", "it") as path:
        assert path == hidden_name(tmp_path / "out")
        path.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_mode_and_group_are_those_of_any_new_file(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 0, 12)
        tmp_path.chmod(0o2755)
    if not unnamed:
        without_tmpfile(monkeypatch)
    before = os.umask(0o027)
    try:
        (tmp_path / "usual").write_bytes(b"new")
        with beside(tmp_path / "out", "it") as path:
            path.write_bytes(b"new")
    finally:
        os.umask(before)
    usual, out = (tmp_path / "usual").stat(), (tmp_path / "out").stat()
    assert (out.st_mode, out.st_gid, out.st_nlink) == (usual.st_mode, usual.st_gid, 1)


def test_other_names_of_the_file_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"old")
    os.link(tmp_path / "other", tmp_path / "out")
    with beside(tmp_path / "out", "it") as path:
        path.write_bytes(b"new")
    assert (tmp_path / "other").read_bytes() == b"old" and (tmp_path / "out").read_bytes() == b"new"


def test_a_folder_that_is_not_there_is_told_by_the_outputs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "none/out"
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as caught, beside(out, "it"):
            pass
        assert caught.value.filename == str(hidden_name(out))
        without_tmpfile(monkeypatch)


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    out = tmp_path / "out[1]"
    mine = tmp_path / f".{out.name}.d"
    dead = hidden_name(out).with_name(f".{out.name}.erofs-edge-dead")
    for one in (mine, dead):
        (one / "below").mkdir(parents=True)
        (one / "below/file").write_bytes(b"x")
    with folder_beside(out) as alive, folder_beside(out) as second:
        (alive / "file").write_bytes(b"x")
        assert alive.is_dir() and second.is_dir() and alive.stat().st_mode & 0o777 == 0o700
        assert not dead.exists() and mine.is_dir()
        second.rename(out)
    assert sorted(os.listdir(tmp_path)) == [mine.name, out.name]


def test_a_folder_that_another_one_sweeps_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def made_and_swept(**named: str) -> str:
        made.append(make(**named))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", made_and_swept)
    with folder_beside(tmp_path / "out") as folder:
        assert folder.is_dir() and made == [made[0], str(folder)]


NAMED_THEMSELVES = {
    "build/pipeline.py": "one build at a time holds the lock of its folder, and sweeps what it finds there",
    "channel/publish.py": "a board's blocks, until their hash is known: the next ones of that board take the name",
    "cli/main.py": "knows the names, for messages",
    "flash/local.py": "a target is opened, written and named in three calls of others",
    "qemu/built.py": "folders of machines that run, which sweep each other",
    "rafs/write.py": "a blob, until its hash is known: the next one of the same output takes the name",
    "release/gate.py": "in the gate's own folder, where the system has temporary ones",
    "sources/cache.py": "ROOT/tmp is swept by age: what is there may be of another machine, on a shared file system",
    "u_boot/toolchain.py": "the names stay: a program's, beside what starts it",
    "vm/configure.py": "in ROOT/tmp of the cache, by the names that QEMU is given",
}
"""what has hidden names of its own, which a kill may leave behind, and why"""


def test_hidden_names_are_made_in_one_place() -> None:
    package = Path(writing.__file__).parent
    own = re.compile(r"""f"\.\{|getpid\(\)\}|(mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile)\([^)]*dir=""")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if own.search(path.read_text())}
    assert found - {"writing.py"} == set(NAMED_THEMSELVES)


def test_folders_among_the_temporary_files_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command has one of its own, which would stay after a kill: none lets the system choose where it lies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = hidden_name(tmp_path / "diff").with_name(".diff.erofs-edge-dead")
    other = hidden_name(tmp_path / "rebuild").with_name(".rebuild.erofs-edge-dead")
    for one in (dead, other):
        one.mkdir()
        (one / "file").write_bytes(b"x")
    with scratch_folder("diff") as folder:
        assert folder.parent == tmp_path and not dead.exists() and other.exists()
    assert list(tmp_path.iterdir()) == [other]
    package = Path(writing.__file__).parent
    own = re.compile(r"(mkdtemp|TemporaryDirectory)\((?![^)]*dir=)")
    assert [path for path in package.rglob("*.py") if own.search(path.read_text())] == []
