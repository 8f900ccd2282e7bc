# SPDX-License-Identifier: Apache-2.0
"""A program that starts others takes them along, whichever way we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually

from erofs_edge.errors import ToolError
from erofs_edge.toolbox.family import run_family
from erofs_edge.u_boot.compile import build

MAKE = """#!/bin/sh
# a make that has started a compiler: both say who they are, and take their time
sleep 300 &
echo $$ $! > {pids}.new
mv {pids}.new {pids}
wait
"""


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "pids"


@pytest.fixture
def make(tmp_path: Path, pids: Path) -> Path:
    program = tmp_path / "root/usr/bin/make"
    program.parent.mkdir(parents=True)
    program.write_text(MAKE.format(pids=pids))
    program.chmod(0o755)
    return program


def lives(pid: int) -> bool:
    """A zombie is dead: whoever inherits it may be slow to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_make_dies_with_us(make: Path, pids: Path, tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys; from pathlib import Path; from erofs_edge.toolbox.family import run_family\n"
        "run_family([sys.argv[1]], cwd=Path(sys.argv[2]), env={'PATH': '/usr/bin:/bin'})"
    )
    us = subprocess.Popen([sys.executable, "-c", code, make, tmp_path], stderr=subprocess.DEVNULL)
    try:
        assert eventually(pids.exists)
        family = [int(word) for word in pids.read_text().split()]
        assert all(map(lives, family))
        us.send_signal(how)
        us.wait(60)
        assert eventually(lambda: not any(map(lives, family)))
    finally:
        us.kill()
        us.wait()


def test_what_is_left_behind_is_ended(make: Path, pids: Path, tmp_path: Path) -> None:
    make.write_text(f"#!/bin/sh\nsleep 300 >/dev/null 2>&1 &\necho $! > {pids}\necho said\necho wrong >&2\nexit 3\n")
    assert run_family([str(make)], cwd=tmp_path, env=dict(os.environ)) == (3, "said\nwrong\n")
    assert eventually(lambda: not lives(int(pids.read_text())))


def test_u_boot_is_made_by_it(make: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_text("#!/bin/sh\nread -r line || echo nothing to read\nps -o pgid= -p $$\nexit 2\n")
    loader = tmp_path / "root/usr/lib/ld-linux-x86-64.so.2"
    loader.parent.mkdir()
    loader.touch()
    monkeypatch.setattr("erofs_edge.u_boot.compile.libraries", lambda root: loader.parent)
    (tmp_path / "source").mkdir()
    with pytest.raises(ToolError, match="does not compile:\nnothing to read") as caught:
        build(tmp_path / "source", tmp_path / "root", "x_defconfig", ())
    assert int(caught.value.message.split()[-1]) != os.getpgid(0)
