# SPDX-License-Identifier: Apache-2.0
"""Digests made in forked processes: those of one thread; files that end early, dead processes, half-read results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, sys
from erofs_edge.errors import FormatError
from erofs_edge.verity import blocks
from erofs_edge.verity.superblock import Superblock

SIZE, PATH = 21 << 20, sys.argv[1]
fd = os.open(PATH, os.O_RDONLY)
blocks.FORK_MIN = 1 << 20
forks, fork = [], os.fork
os.fork = lambda: forks.append(fork()) or forks[-1]
for algorithm, size in (("sha256", 4096), ("sha512", 1024)):
    sb = Superblock(bytes(16), b"salt", SIZE // size, algorithm, size, size)
    one, three = ([*blocks.hashed_slices(sb, fd, 0, SIZE, size, jobs=jobs)] for jobs in (1, 3))
    assert one == three
assert len(forks) == 6
sb = Superblock(bytes(16), b"salt", SIZE // 4096)
whole = [*blocks.hashed_slices(sb, fd, 0, SIZE, 4096, jobs=1)]
killed = blocks.hashed_slices(sb, fd, 0, SIZE, 4096, jobs=2)
found = [next(killed)]
for child in forks[-2:]:
    os.kill(child, signal.SIGKILL)
assert found + [*killed] == whole, "what a process did not deliver is done here"
left = blocks.hashed_slices(sb, fd, 0, SIZE, 4096, jobs=2)
next(left)
left.close()
try:
    list(blocks.hashed_slices(sb, fd, 0, SIZE + (4 << 20), 4096, jobs=2))
except FormatError as error:
    assert "ends inside" in str(error)
else:
    sys.exit("a file that ends early was taken")
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no process is left")
"""


def test_processes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * (21 << 12))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "no process is left\n"), done.stderr
