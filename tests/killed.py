# SPDX-License-Identifier: Apache-2.0
"""Commands that are killed at the moments in which files get their names, and what the next run makes of the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

COMMAND = """
import os, signal, sys
left = int(sys.argv.pop(1))
def audit(event, arguments):
    global left
    if event in ("os.rename", "os.link"):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
if left:
    sys.addaudithook(audit)
from erofs_edge.cli.main import main
main()
"""
MOMENTS = 40  # more than any command has


def killed_at(moment: int, *words: object) -> int:
    """Run ``erofs-edge``, killed before the name of that number that it gives (0: not at all); the exit code."""
    whole = [sys.executable, "-c", COMMAND, str(moment), *map(str, words)]
    return subprocess.run(whole, capture_output=True, check=False).returncode


def kills_leave_nothing(folder: Path, *words: object, before: Callable[[], None] = lambda: None) -> None:
    """After a run that was killed anywhere and a whole one, the folder holds what it holds after a whole one.

    `before` is called before each run.
    """

    def names() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    def whole() -> list[str]:
        before()
        assert killed_at(0, *words) == 0
        return names()

    clean = whole()
    for moment in range(1, MOMENTS):
        before()
        code = killed_at(moment, *words)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert whole() == clean, f"killed at {moment}"
    assert 1 < moment < MOMENTS - 1
