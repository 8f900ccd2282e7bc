# SPDX-License-Identifier: Apache-2.0
"""Background work of a build: results, errors, killed processes, unused results; threads where forking is unsafe."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from erofs_edge.build.beside import beside
from erofs_edge.errors import SourceError

PROGRAM = """
import os, signal, sys, time
from erofs_edge.build.beside import beside
from erofs_edge.errors import SourceError

parent, forks, fork = os.getpid(), [], os.fork
os.fork = lambda: forks.append(fork()) or forks[-1]

with beside(os.getpid) as result:
    assert result() == result() == forks[-1] != parent
with beside(lambda: bytes(1 << 20)) as result:  # more than a pipe holds
    assert result() == bytes(1 << 20)

def fails():
    raise SourceError("damaged", where="here", hint="mend it")

try:
    with beside(fails) as result:
        result()
except SourceError as error:
    assert (str(error), error.hint) == ("here: damaged", "mend it")
else:
    sys.exit("an error was lost")

def hangs():
    while os.getpid() != parent:
        signal.pause()
    return "done here"

with beside(hangs) as result:
    os.kill(forks[-1], signal.SIGKILL)
    assert result() == "done here"
with beside(hangs):
    pass
try:
    with beside(hangs):
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
with beside(lambda: lambda: 0 if os.getpid() == parent else None) as result:
    assert result()() == 0, "what cannot be sent is done here"
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print(len(forks), "processes, none is left")
"""


def test_in_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "7 processes, none is left\n"), done.stderr


def test_on_a_thread_where_there_are_others(tmp_path: Path) -> None:
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with beside(threading.get_ident) as result:
            assert result() not in (threading.get_ident(), other.ident)
        with pytest.raises(SourceError, match="damaged"), beside(lambda: _fail(tmp_path)) as result:
            result()
    finally:
        end.set()
        other.join()
    assert (tmp_path / "ran").exists()


def _fail(folder: Path) -> None:
    (folder / "ran").touch()
    raise SourceError("damaged")
