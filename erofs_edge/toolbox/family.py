# SPDX-License-Identifier: Apache-2.0
"""Run a program that starts others, such as make, so that none of them outlives this process, even if it is killed.

All of them form one process group. A shell beside them reads from a pipe that this process holds and never writes to:
end of file means that this process is gone, for whatever reason, and the shell kills the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# the watcher is orphaned, so that the program does not wait for it, and keeps none of the output open
_WATCHED = 'exec 3<&0 </dev/null; ((read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &); exec 3<&-; exec "$@"'


def run_family(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a program; return its exit code, and all output of it and of what it started, including errors. Its input is
    empty.

    The run ends with the output: processes left then are killed, and so are all if an exception (Ctrl-C) ends the wait.
    Raises OSError if it cannot be started; a program that does not exist exits with 127.
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
                with suppress(ProcessLookupError):  # nothing is left of the group, not even the watcher
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said
    finally:
        os.close(held)
        if pipe >= 0:
            os.close(pipe)
