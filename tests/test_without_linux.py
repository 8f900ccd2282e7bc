# SPDX-License-Identifier: Apache-2.0
"""What works on any POSIX system: commands in a Python that lacks what only Linux has. The bytes are the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = '''
import mmap, os, select, sys
names = """O_TMPFILE O_DIRECT O_PATH O_NOATIME memfd_create listxattr getxattr setxattr removexattr posix_fadvise
    posix_fallocate copy_file_range sched_getaffinity sched_setaffinity fdatasync splice eventfd pidfd_open
    RWF_NOWAIT""".split()
for name in names:
    delattr(os, name)
for name in [name for name in vars(mmap) if name.startswith(("MADV_", "MAP_POPULATE"))]:
    delattr(mmap, name)
del select.epoll
sys.platform = "aix"  # not darwin: Python asks the system for proxies there, by a module that is not here
from erofs_edge.cli.main import main
main()
'''


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("source") / "tree"
    (top / "sub").mkdir(parents=True)
    for number in range(40):
        (top / "sub" / f"{number}").write_bytes(b"".join(b"%d\n" % i for i in range(number * 1000)))
    (top / "hard").hardlink_to(top / "sub/9")
    (top / "link").symlink_to("sub/9")
    os.mkfifo(top / "fifo")
    return top


def run(*words: str | Path, here: bool = False, folder: Path) -> str:
    program = "from erofs_edge.cli.main import main; main()" if here else WITHOUT
    argv = [sys.executable, "-c", program, *map(str, words)]
    env = {**os.environ, "EROFS_EDGE_CACHE": str(folder / "cache"), "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


OPTIONS = [
    ["-z", "lz4", "-C", "64K"],
    ["-z", "lz4hc", "-E", "fragments,dedupe"],
    ["-z", "zstd,1", "-E", "ztailpacking"],
    ["--chunksize", "64K"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_images_are_the_same(source: Path, tmp_path: Path, options: list[str]) -> None:
    run("fs", "build", source, "-o", "other.img", *options, folder=tmp_path)
    run("fs", "build", source, "-o", "here.img", *options, "--no-cache", here=True, folder=tmp_path)
    assert (tmp_path / "other.img").read_bytes() == (tmp_path / "here.img").read_bytes()
    run("fs", "build", source, "-o", "other.img", *options, folder=tmp_path)  # in place of the first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "here.img", "other.img"][options[0] != "-z" :]


def test_what_is_done_with_images(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", "-z", "lz4hc", folder=tmp_path)
    assert "sub/9" in run("fs", "ls", "-R", "i.img", folder=tmp_path)
    run("fs", "check", "i.img", folder=tmp_path)
    run("fs", "extract", "i.img", "out", folder=tmp_path)
    assert (tmp_path / "out/link").read_bytes() == (source / "hard").read_bytes()
    assert (tmp_path / "out/hard").samefile(tmp_path / "out/sub/9") and (tmp_path / "out/fifo").is_fifo()
    run("diff", "out", source, folder=tmp_path)
    run("diff", "i.img", "i.img", folder=tmp_path)
    for words in (["fs", "dump"], ["fs", "map"], ["fs", "stat"]):
        run(*words, "i.img", *(["/sub/9"] if words[1] == "stat" else []), folder=tmp_path)
    flash = ["flash", "--image", "i.img", "--to", "disk.img", "--yes", "--allow-unsigned"]
    for _ in range(2):
        run(*flash, folder=tmp_path)
        assert (tmp_path / "disk.img").read_bytes() == (tmp_path / "i.img").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_hash_trees_and_parity(source: Path, tmp_path: Path) -> None:
    run("fs", "build", source, "-o", "i.img", "-z", "lz4", folder=tmp_path)
    parity = ["--fec-device", "i.fec", "--fec-roots", "2"]
    said = run("verity", "format", "i.img", *parity, folder=tmp_path)
    (root_hash,) = re.findall(r"Root hash: *([0-9a-f]{64})", said)
    whole = (tmp_path / "i.img").read_bytes()
    damaged = bytearray(whole)
    damaged[9000:9004] = bytes(byte ^ 1 for byte in damaged[9000:9004])
    (tmp_path / "i.img").write_bytes(damaged)
    run("verity", "repair", "i.img", *parity, "--root-hash", root_hash, folder=tmp_path)
    assert (tmp_path / "i.img").read_bytes() == whole
    run("verity", "verify", "i.img", "--root-hash", root_hash, folder=tmp_path)
