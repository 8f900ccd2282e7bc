# SPDX-License-Identifier: Apache-2.0
"""Run a program that starts others, such as make, so that none of them outlives us: not even where we are killed.

All of them are one process group. A shell beside them reads from a pipe that we hold and never write to: its end says
that we are gone, however that came about, and the shell kills the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# the watcher is nobody's child, so that the program does not wait for it, and holds nothing of the output open
_WATCHED = 'exec 3<&0 </dev/null; ((read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &); exec 3<&-; exec "$@"'


def run_family(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a program, and what it and those it started said, errors too. It can read nothing.

    The end is that of the output: whoever is left then is killed, and so is everybody where an exception (Ctrl-C) ends
    the wait.
    Raises OSError where it cannot be started; a program that is not there exits with 127.
    """
    pipe, held = os.pipe()
    try:
        with subprocess.Popen(
            ["/bin/sh", "-c", _WATCHED, "sh", *command], cwd=cwd, env=env, stdin=pipe, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            os.close(pipe)
            pipe = -1
            try:
                said, _ = process.communicate()
            finally:
                with suppress(ProcessLookupError):  # none of the group is left, not even the watcher
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said
    finally:
        os.close(held)
        if pipe >= 0:
            os.close(pipe)
