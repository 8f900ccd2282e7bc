# SPDX-License-Identifier: Apache-2.0
"""Bad trees, changing files, full disks, signals: one clear error, and the old image is kept."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from treediff import scan
from writer_check import write
from writer_trees import Repeated, file, noise, rich_tree

from erofs_edge import erofs
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.profile import Use
from erofs_edge.errors import CapacityError, ErofsEdgeError, SourceError, UsageError
from erofs_edge.tree import FileContent, FileTree, Inode


def tree_of(**nodes: Inode) -> FileTree:
    tree = FileTree()
    tree.root.children = {os.fsencode(name): node for name, node in nodes.items()}
    return tree


def symlink(target: bytes) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, target=target)


def device(*rdev: int) -> Inode:
    return Inode(stat.S_IFCHR, rdev=rdev)  # type: ignore[arg-type]


SHARED_DIRECTORY = Inode(stat.S_IFDIR | 0o755)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (tree_of(**{"n" * 256: file(b"")}), "bad file name"),
        (tree_of(**{"a/b": file(b"")}), "bad file name"),
        (tree_of(**{"..": file(b"")}), "bad file name"),
        (tree_of(**{"": file(b"")}), "bad file name"),
        (tree_of(**{".": file(b"")}), "bad file name"),
        (tree_of(**{"a\0b": file(b"")}), "bad file name"),
        (tree_of(x=symlink(b"")), "symlink target"),
        (tree_of(x=symlink(b"a\0b")), "symlink target"),
        (tree_of(x=symlink(b"t" * 4096)), "symlink target"),
        (tree_of(x=device(4096, 1)), "device number"),
        (tree_of(x=device(1, 1 << 20)), "device number"),
        (tree_of(x=Inode(0o644)), "unknown kind"),
        (tree_of(x=Inode(0o160644)), "unknown kind"),
        (tree_of(x=file(b"", uid=1 << 32)), "owner"),
        (tree_of(x=file(b"", gid=-1)), "owner"),
        (tree_of(x=file(b"", mtime_ns=1 << 100)), "mtime"),
        (tree_of(x=SHARED_DIRECTORY, y=SHARED_DIRECTORY), "also at /x"),
        (tree_of(x=file(b"", xattrs={b"system.ntfs": b""})), "system.ntfs cannot be stored"),
        (tree_of(x=file(b"", xattrs={b"user.v": bytes(65536)})), "more than 65535"),
        (tree_of(x=file(b"", xattrs={b"user.%d" % i: bytes(65535) for i in range(5)})), "256 KiB"),
        (FileTree(file(b"")), "must be a directory"),
        (tree_of(x=Inode(stat.S_IFREG | 0o644, content=Repeated(1 << 63))), "more than an inode can store"),
    ],
)
def test_what_no_image_can_hold(tmp_path: Path, tree: FileTree, message: str) -> None:
    (tmp_path / "i").write_bytes(b"old")
    with pytest.raises(SourceError, match=message) as caught:
        write(tree, tmp_path / "i")
    assert caught.value.where
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
    assert (tmp_path / "i").read_bytes() == b"old"


def test_errors_name_the_path_and_its_origin(tmp_path: Path) -> None:
    tree = FileTree()
    tree.add("a/b", symlink(b"")).origin = "pkg_1.0"
    with pytest.raises(SourceError) as caught:
        write(tree, tmp_path / "i")
    assert caught.value.where == "/a/b (from pkg_1.0)"


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 256},
        {"block_size": 1 << 17},
        {"block_size": 3000},
        {"compression": "zlib"},
        {"compression": "lz4", "level": 3},
        {"level": 13},
        {"pcluster": 2048},
        {"pcluster": 5000},
        {"pcluster": 2 << 20},
        {"epoch": -1},
        {"times": "fixed"},
        {"uuid": b"1"},
        {"volume_name": b"n" * 16},
        {"volume_name": b"a\0b"},
        {"jobs": 0},
    ],
    ids=str,
)
def test_options_that_no_image_can_have(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        WriteOptions(**options)


def test_compact_inodes_cannot_hold_everything(tmp_path: Path) -> None:
    write(tree_of(x=file(b"")), tmp_path / "i", inode_form="compact")
    for node in (file(b"", uid=65536), file(b"", mtime_ns=5)):
        with pytest.raises(SourceError, match="compact"):
            write(tree_of(x=node, y=file(b"")), tmp_path / "i", inode_form="compact")


@pytest.mark.parametrize("change", [-1, 1, None])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_file_that_changes_its_size(tmp_path: Path, change: int | None, compression: str) -> None:
    path = tmp_path / "growing"
    path.write_bytes(noise(9000))
    tree = tree_of(x=file(FileContent(path, 9000)), y=file(noise(100)))
    write(tree, tmp_path / "i", compression=compression)
    before = (tmp_path / "i").read_bytes()
    if change is None:
        path.unlink()
    else:
        path.write_bytes(noise(9000 + change))
    with pytest.raises(SourceError, match="growing") as caught:
        write(tree, tmp_path / "i", compression=compression)
    assert caught.value.where == "/x"
    assert (tmp_path / "i").read_bytes() == before


@pytest.mark.parametrize("how", ["new", "baseline", "profile"])
@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_a_file_that_changes_and_keeps_its_size(tmp_path: Path, how: str, change: str) -> None:
    """What was read may be half old and half new: only its time reveals that."""
    source, image = tmp_path / "source", tmp_path / "i"
    source.mkdir()
    for name in ("a", "busy"):
        (source / name).write_bytes(noise(200_000))
    options: dict[str, Any] = {"epoch": 0}
    if how == "baseline":
        erofs.build(source, image, **options)
        options["baseline"] = image
    elif how == "profile":
        options["profile"] = (Use(b"busy", 0, 4096),)
    before = sorted(path.name for path in tmp_path.iterdir())

    def meanwhile(_done: int, _total: int) -> None:
        if change == "gone":
            (source / "busy").unlink(missing_ok=True)
        else:
            (source / "busy").write_bytes(noise(200_000))

    with pytest.raises(SourceError, match="busy changed while the image was being written") as caught:
        erofs.build(source, image, progress=meanwhile, **options)
    assert caught.value.where == "/busy"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (source / "busy").write_bytes(noise(200_000))
    erofs.build(source, image, **options)


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_file_that_cannot_be_read(tmp_path: Path, compression: str) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a", "gone", "z"):
        (tmp_path / "source" / name).write_bytes(b"x" * 10_000)
    tree = scan(tmp_path / "source")
    (tmp_path / "source/gone").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*gone: No such file") as caught:
        write(tree, tmp_path / "i", compression=compression)
    assert caught.value.where is not None and caught.value.where.startswith("/gone")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_members_of_archives_are_not_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(noise(9000))
    write(tree_of(x=file(FileContent(path, 5000, 512))), tmp_path / "i")
    with pytest.raises(SourceError, match="changed its size"):
        write(tree_of(x=file(FileContent(path, 5000, 4512))), tmp_path / "i")


def test_a_content_that_lies(tmp_path: Path) -> None:
    @dataclass
    class Short:
        size: int = 5000

        def read(self, offset: int, length: int) -> bytes:
            return b"s" * (length - 1)

    with pytest.raises(SourceError, match="changed its size"):
        write(tree_of(x=file(Short())), tmp_path / "i")


@pytest.mark.parametrize("first", [True, False])
def test_a_large_file_that_becomes_another(tmp_path: Path, first: bool) -> None:
    """Its pieces must not be stored in two ways."""
    archive = b"\xfd7zXZ\0" + noise(100_000)

    @dataclass
    class Fickle:
        size: int = (16 << 20) + 100_000
        later: bool = False

        def read(self, offset: int, length: int) -> bytes:
            self.later |= offset >= 16 << 20  # the second piece is being stored
            looks_compressed = self.later != first
            return (archive * (1 + length // len(archive)))[:length] if looks_compressed else bytes(length)

    with pytest.raises(SourceError, match="changed while"):
        write(tree_of(x=file(Fickle())), tmp_path / "i", compression="lz4", jobs=1)


def test_outputs_that_are_no_files(tmp_path: Path) -> None:
    for target in (Path("/dev/null"), tmp_path):
        with pytest.raises(UsageError, match="not a regular file"):
            write(rich_tree(), target)
    with pytest.raises(ErofsEdgeError, match="cannot write the image"):
        write(rich_tree(), tmp_path / "no/such/folder")


def test_no_space_left(tmp_path: Path) -> None:
    """A limit on file sizes acts like a full disk: the same code path in the writer."""
    (tmp_path / "i").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        with pytest.raises(CapacityError, match="no space left"):
            write(tree_of(x=file(noise(3 << 20)), y=file(Repeated(40 << 20))), tmp_path / "i", compression="none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["i"]
    assert (tmp_path / "i").read_bytes() == b"old"


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from treediff import scan
from writer_check import write
from writer_trees import Repeated, file
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.tree import FileTree
tree = FileTree()
for i in range(200):
    tree.add(f"{i:03d}", file(Repeated(1_000_000 + i, b"%d" % i, noise=200_000 + i)))
def progress(done, total):
    if done > 20_000_000:
        print("running", flush=True)
with CompressionCache(Path(sys.argv[3])) as cache:
    write(tree, Path(sys.argv[2]), compression="lz4hc", level=9, progress=progress, cache=cache)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "i").write_bytes(b"old")
    argv = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(out / "i"), str(tmp_path / "cache")]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"running\n"
    child.send_signal(number)
    assert child.wait(60) != 0
    assert [p.name for p in out.iterdir()] == ["i"]
    assert (out / "i").read_bytes() == b"old"


def test_where_files_need_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without O_TMPFILE: a temporary name beside the file, removed on failure, with the umask's mode."""
    real = os.open

    def refuse(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, mode)  # type: ignore[arg-type]

    write(rich_tree(), tmp_path / "usual", compression="none")
    monkeypatch.setattr(os, "open", refuse)
    write(rich_tree(), tmp_path / "named", compression="none")
    assert (tmp_path / "usual").read_bytes() == (tmp_path / "named").read_bytes()
    assert (tmp_path / "usual").stat().st_mode == (tmp_path / "named").stat().st_mode
    path = tmp_path / "shrinking"
    path.write_bytes(noise(9000))
    with pytest.raises(SourceError):
        write(tree_of(x=file(FileContent(path, 9001))), tmp_path / "named")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["named", "shrinking", "usual"]


def test_a_symlink_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("new", "old"):
        link, file = tmp_path / name, tmp_path / "far" / name
        link.symlink_to(f"far/{name}")
        if name == "old":
            file.write_bytes(b"old")
        write(FileTree(Inode(0o040755)), link)
        assert link.is_symlink() and file.stat().st_size == 4096
    assert sorted(os.listdir(tmp_path / "far")) == ["new", "old"]
