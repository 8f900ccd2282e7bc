# SPDX-License-Identifier: Apache-2.0
"""What works on any system with a Python: commands in one that lacks what Windows has not (without_posix.py). The bytes
are the same, as far as such a system can tell what they are made of."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import lz4.block._block
import pytest

from erofs_edge.erofs import folders

HARNESS = Path(__file__).parent / "without_posix.py"
ROOT = HARNESS.parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it is as a system without modes tells it."""
    top = tmp_path_factory.mktemp("source") / "tree"
    (top / "sub").mkdir(parents=True)
    for number in range(40):
        (top / "sub" / f"{number}").write_bytes(b"".join(b"%d\r\n" % i for i in range(number * 1000)))
    (top / "hard").hardlink_to(top / "sub/9")
    (top / "link").symlink_to("sub/9")
    (top / "noise").write_bytes(os.urandom(200_000))
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    return top


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's LZ4 as a library of the system."""
    path = tmp_path_factory.mktemp("library") / "liblz4.dll"
    shutil.copy(lz4.block._block.__file__, path)
    return path


def attempt(
    *words: str | Path, folder: Path, here: bool = False, **more: str | Path
) -> subprocess.CompletedProcess[str]:
    program = ["-m", "erofs_edge"] if here else [HARNESS]
    env = {**os.environ, "EROFS_EDGE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    env |= {name: str(value) for name, value in more.items()}
    argv = [sys.executable, *map(str, program), *map(str, words)]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)


def run(*words: str | Path, folder: Path, here: bool = False, **more: str | Path) -> str:
    done = attempt(*words, folder=folder, here=here, **more)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


OWNED = ["--force-uid", "0", "--force-gid", "0"]
OPTIONS = [
    [],
    ["-z", "lz4", "-C", "64K"],
    ["-z", "lz4hc", "-E", "fragments,dedupe"],
    ["-z", "zstd,1", "-E", "ztailpacking"],
    ["-z", "deflate,1"],
    ["-z", "auto"],
    ["--chunksize", "64K"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_images_are_the_same(source: Path, library: Path, tmp_path: Path, options: list[str]) -> None:
    run("fs", "build", source, "-o", "here.img", *options, *OWNED, "--no-cache", here=True, folder=tmp_path)
    for _ in range(2):  # the second in place of the first, and from the cache
        run("fs", "build", source, "-o", "other.img", *options, folder=tmp_path, WITHOUT_POSIX_LZ4=library)
        assert (tmp_path / "other.img").read_bytes() == (tmp_path / "here.img").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"here.img", "other.img"}


def test_what_is_done_with_images_needs_no_library(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", "-z", "lz4hc", "-E", "fragments", here=True, folder=tmp_path)
    assert "sub/9" in run("fs", "ls", "-R", "i.img", folder=tmp_path)
    assert run("fs", "cat", "i.img", "/sub/9", folder=tmp_path) == (source / "hard").read_text()
    run("fs", "check", "i.img", folder=tmp_path)
    run("diff", "i.img", "i.img", folder=tmp_path)
    for words in (["fs", "dump"], ["fs", "map"], ["fs", "stat"]):
        run(*words, "i.img", *(["/sub/9"] if words[1] == "stat" else []), folder=tmp_path)
    refused = attempt("fs", "build", source, "-o", "other.img", "-z", "lz4", folder=tmp_path)
    assert refused.returncode and "LZ4_versionNumber" in refused.stderr and "Traceback" not in refused.stderr


def test_what_is_extracted(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", "-z", "lz4hc", here=True, folder=tmp_path)
    run("fs", "extract", "i.img", "out", folder=tmp_path)
    run("diff", "out", source, here=True, folder=tmp_path)
    assert (tmp_path / "out/hard").samefile(tmp_path / "out/sub/9") and (tmp_path / "out/link").is_symlink()
    for name in ("sub/3", "sub", "."):
        assert (tmp_path / "out" / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "is not empty" in attempt("fs", "extract", "i.img", "full", folder=tmp_path).stderr
    damaged = bytearray((tmp_path / "i.img").read_bytes())
    damaged[-5000:-3000] = bytes(2000)
    (tmp_path / "i.img").write_bytes(damaged)
    assert attempt("fs", "extract", "i.img", "gone", folder=tmp_path).returncode
    assert not [path for path in tmp_path.iterdir() if path.name == "gone" or path.name.startswith(".")]


def test_links_that_a_user_may_not_make_are_left_out_and_named(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", here=True, folder=tmp_path)
    done = attempt("fs", "extract", "i.img", "out", folder=tmp_path, WITHOUT_POSIX_SYMLINKS="no")
    assert "/link: not kept: symlink: not without a privilege" in done.stdout + done.stderr
    assert (tmp_path / "out/sub/9").exists() and not (tmp_path / "out/link").is_symlink()


def test_names_that_the_system_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "tree/a:b").mkdir(parents=True)
    (tmp_path / "tree/a:b/below").write_bytes(b"below")
    (tmp_path / "tree" / os.fsdecode(b"\xff")).write_bytes(b"no text")
    for name in ("ok", "..\\up", "nul.txt"):
        (tmp_path / "tree" / name).write_bytes(b"content")
    run("fs", "build", "tree", "-o", "i.img", here=True, folder=tmp_path)
    assert "a:b/below" in run("fs", "ls", "-R", "i.img", folder=tmp_path)
    said = attempt("fs", "extract", "i.img", "out", folder=tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == ["ok"] and sorted(os.listdir(tmp_path)) == ["i.img", "out", "tree"]
    assert (said.stdout + said.stderr).count("this system has no such names") == 5
    assert run("fs", "cat", "i.img", "/nul.txt", folder=tmp_path) == "content"


@pytest.mark.parametrize("name", ["CON", "com1.tar.gz", "lpt² ", "a ", "b.", "c\\d", "c:", "t\t", "*", "aux.c"])
def test_impossible_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folders.is_possible(name.encode())
    monkeypatch.setattr(folders, "BY_PATHS", True)
    assert not folders.is_possible(name.encode()) and not folders.is_possible(b"\xff")
    assert all(map(folders.is_possible, (b"con2", b"a.con", b".b", "ä".encode(), b"com10")))


def test_hash_trees_and_parity(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", here=True, folder=tmp_path)
    shutil.copy(tmp_path / "i.img", tmp_path / "j.img")
    parity = ["--fec-device", "i.fec", "--fec-roots", "2"]
    said = run("verity", "format", "i.img", *parity, folder=tmp_path)
    run("verity", "format", "j.img", here=True, folder=tmp_path)
    assert (tmp_path / "i.img").read_bytes() == (tmp_path / "j.img").read_bytes()
    (root_hash,) = re.findall(r"Root hash: *([0-9a-f]{64})", said)
    whole = (tmp_path / "i.img").read_bytes()
    damaged = bytearray(whole)
    damaged[9000:9004] = bytes(byte ^ 1 for byte in damaged[9000:9004])
    (tmp_path / "i.img").write_bytes(damaged)
    assert attempt("verity", "verify", "i.img", "--root-hash", root_hash, folder=tmp_path).returncode == 4
    run("verity", "repair", "i.img", *parity, "--root-hash", root_hash, folder=tmp_path)
    assert (tmp_path / "i.img").read_bytes() == whole
    run("verity", "verify", "i.img", "--root-hash", root_hash, folder=tmp_path)


def test_what_needs_more_says_so(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", here=True, folder=tmp_path)
    done = attempt("flash", "--image", "i.img", "--to", "d.img", "--yes", "--allow-unsigned", folder=tmp_path)
    assert (done.returncode, "this needs a POSIX system" in done.stderr) == (1, True), done.stderr


def test_archives(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(source, ".")
    run("fs", "build", "--tar-index", "t.tar", "-o", "other.img", folder=tmp_path)
    run("fs", "build", "--tar-index", "t.tar", "-o", "here.img", here=True, folder=tmp_path)
    assert (tmp_path / "other.img").read_bytes() == (tmp_path / "here.img").read_bytes()
    run("fs", "check", "other.img", "--device", "t.tar", folder=tmp_path)


API = """
import runpy, stat
harness = runpy.run_path({harness!r})
for name in ("behave_otherwise", "take_away", "hide_what_extensions_hold"):
    harness[name]()
from erofs_edge import erofs
from erofs_edge.tree import BytesContent, FileTree, Inode
tree = FileTree()
tree.add("/bin/run", Inode(stat.S_IFREG | 0o755, content=BytesContent(b"#!/bin/sh\\n")))
erofs.build(tree, "api.img", compression="none")
with erofs.open("api.img") as image:
    print(image.lookup("/bin/run").mode & 0o777)
"""


def test_the_api_knows_modes_that_the_system_does_not(tmp_path: Path) -> None:
    program = API.format(harness=str(HARNESS))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{0o755}\n", done.stderr
    assert stat.S_ISREG((tmp_path / "api.img").stat().st_mode)
