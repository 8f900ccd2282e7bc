# SPDX-License-Identifier: Apache-2.0
"""QEMU on this machine: which program, which version, and short runs of it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from erofs_edge.errors import ToolError
from erofs_edge.toolbox.prefix import find

PROGRAM = "qemu-system-aarch64"
VARIABLE = "EROFS_EDGE_QEMU"
OLDEST = (7, 2)
MENDS = "erofs-edge tools fetch"
PR_SET_PDEATHSIG = 1
"""include/uapi/linux/prctl.h"""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU program and its version."""

    program: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find_qemu() -> Emulator:
    """EROFS_EDGE_QEMU, else the private prefix, else PATH. Raises ToolError if it is missing or too old."""
    named = os.environ.get(VARIABLE)
    program = Path(named) if named else find(PROGRAM)
    said = short_run([str(program), "--version"])
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", said)
    if not found:
        raise ToolError("this is not QEMU: it prints no version", where=str(program), hint=MENDS)
    emulator = Emulator(program, (int(found[1]), int(found[2]), int(found[3])))
    if emulator.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ToolError(
            f"QEMU {emulator.version_text} is too old, {oldest} is needed", where=str(program), hint=_mend(named)
        )
    return emulator


def _mend(named: str | None) -> str:
    return f"unset {VARIABLE}, then: {MENDS}" if named else MENDS


def escaped(path: Path) -> str:
    """A path for use inside a list of options: QEMU requires doubled commas, and takes what precedes a colon in the
    first part of a relative path for a protocol."""
    text = str(path).replace(",", ",,")
    return f"./{text}" if ":" in text.partition("/")[0] else text


def short_run(command: list[str]) -> str:
    """The output of a short run of QEMU. Raises ToolError if it cannot be started or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ToolError(f"QEMU cannot be started: {error.strerror}", where=command[0], hint=MENDS) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError("QEMU does not answer", where=command[0], hint=MENDS) from error
    if done.returncode:
        raise ToolError(f"QEMU failed: {done.stdout.strip()[-400:]}", where=command[0])
    return done.stdout


def death_with_parent() -> Callable[[], object]:
    """A function for Popen's preexec_fn: the child is killed when the thread that starts it ends. It is one call into
    libc, made ready before the fork."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: list[str], complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start QEMU with its console on a pipe and its own messages in `complaints`; it dies with this process.

    Raises ToolError if it cannot be started.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,
            preexec_fn=death_with_parent(),  # noqa: PLW1509  see there
        )
    except OSError as error:
        raise ToolError(f"QEMU cannot be started: {error.strerror}", where=command[0], hint=MENDS) from error
