# SPDX-License-Identifier: Apache-2.0
"""The program's first moments: Ctrl-C gives no traceback, and is ignored where the caller ignores it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import erofs_edge

# Ctrl-C at the n-th import, whatever the machine's speed; without Ctrl-C, the number of imports
INTERRUPTED = """
import atexit, os, signal, sys
wanted = int(sys.argv.pop(1))
seen = 0
def look(event, arguments):
    global seen
    if event == "import":
        seen += 1
        if seen == wanted:
            os.kill(os.getpid(), signal.SIGINT)
from erofs_edge.__main__ import main
atexit.register(lambda: wanted or print(seen))
sys.addaudithook(look)
main()
"""
VERB = ["fs", "ls", "--json", os.devnull]


def interrupted(point: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", INTERRUPTED, str(point), *VERB]
    return subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=_heeds_sigint)


def _heeds_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored


def test_ctrl_c_at_any_point_of_the_start_is_no_traceback() -> None:
    whole = interrupted(0)
    assert whole.returncode == 1 and "the image is empty" in whole.stderr
    imports = int(whole.stdout.splitlines()[-1])
    assert imports > 60
    ends = []
    for point in range(1, imports, imports // 11):
        done = interrupted(point)
        assert done.stderr in ("", "erofs-edge: interrupted\n"), f"at {point} of {imports}"
        assert done.stdout == "", f"at {point} of {imports}"
        ends.append(done.returncode)
    assert set(ends) == {-signal.SIGINT, 130}
    assert ends == sorted(ends), "first it ends by the signal, and once a verb may have work under way it unwinds"


def test_who_ignores_ctrl_c_goes_on() -> None:
    """As under nohup, or in the background of a shell."""
    command = [sys.executable, "-c", INTERRUPTED, "5", *VERB]
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, **ignore)
    assert done.returncode == 1 and "the image is empty" in done.stderr


def test_the_module_and_the_console_script_start_the_same_way() -> None:
    done = subprocess.run([sys.executable, "-m", "erofs_edge", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"erofs-edge, version {erofs_edge.__version__}\n"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"erofs-edge": "erofs_edge.__main__:main"}


def test_the_first_lines_import_nothing() -> None:
    """Except for what Python's own start may have loaded."""
    code = (
        "import sys; before = set(sys.modules); import erofs_edge.__main__; print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-S", "-c", code]
    folder = Path(erofs_edge.__file__).parents[1]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    assert done.stdout == "__future__ erofs_edge erofs_edge.__main__\n"
