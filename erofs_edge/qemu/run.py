# SPDX-License-Identifier: Apache-2.0
"""Run QEMU once with its console on a pipe: read, pass on, and always end it."""

from __future__ import annotations

import os
import selectors
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from erofs_edge.errors import BootCheckError, ErofsEdgeError, ToolError
from erofs_edge.qemu.console import Console, Event
from erofs_edge.qemu.verdict import Verdict
from erofs_edge.toolbox.emulator import start

PIECE = 64 << 10
COMPLAINT = 2000
"""bytes of QEMU's own messages that are quoted in an error"""
LAST_LINES = 20
"""console lines that are quoted in an error"""


class Decides(Protocol):
    """Collects events until the outcome is clear: verdict.Watch, fallback.FallbackWatch."""

    def see(self, event: Event) -> Verdict | None: ...

    def end(self, reason: str) -> Verdict: ...

    def timed_out(self, seconds: float) -> Verdict: ...


def run(
    command: list[str],
    watch: Decides,
    console: Console,
    *,
    timeout: float,
    seen: Callable[[Event], None],
    log: Path | None = None,
) -> Verdict:
    """Start QEMU, pass its output to `console` and the events to `watch` until it decides or `timeout` seconds are
    over.

    seen  called with each event, in the order of the console, before `watch` gets it
    log   gets every byte of the console

    QEMU is dead when this returns or raises, also on Ctrl-C, and dies with this process. Raises ToolError if it cannot
    be started or ends without any output from the machine.
    """

    def decide(data: bytes, at: float) -> Verdict | None:
        try:
            record.write(data)
        except OSError as error:
            raise _no_log(log, error) from error
        for event in console.feed(data, at) if data else console.close(at):
            seen(event)
            if verdict := watch.see(event):
                return verdict
        return None

    with tempfile.TemporaryFile() as complaints, _log(log) as record:
        try:
            if verdict := _follow(command, complaints, timeout, decide):
                return verdict
        except TimeoutError:
            return watch.timed_out(timeout)
        complaints.seek(0)
        said = complaints.read(COMPLAINT).decode(errors="replace").strip()
    if not console.last_lines():
        raise ToolError(f"QEMU ended before the machine printed anything: {said or 'no message'}", where=command[0])
    return watch.end(f"the machine ended{': ' + said if said else ''}")


def failure(
    what: str, verdict: Verdict, console: Console, log: Path | None, *, other_build: bool = False
) -> BootCheckError:
    """The error about a run that did not end as expected: `what`, why, and the last lines of the console, all of which
    is in `log`. `other_build`: the machine runs another build than the one it was compared with."""
    lines = "\n".join(f"  | {line}" for line in console.last_lines()[-LAST_LINES:])
    longer = "--timeout SECONDS gives it longer, " if verdict.late else ""
    if other_build:
        hint = "the disk holds another build: give the folder of that one with -o FOLDER"
    else:
        hint = longer + (f"the whole console is in {log}" if log else "--log FILE saves the whole console")
    return BootCheckError(f"{what}: {verdict.reason}\nlast lines of the console:\n{lines}", hint=hint)


def _follow(
    command: list[str], complaints: IO[bytes], timeout: float, decide: Callable[[bytes, float], Verdict | None]
) -> Verdict | None:
    """The verdict of `decide`; None if the output ended without one (`decide` then gets b""). Raises TimeoutError."""
    began = time.monotonic()
    machine = start(command, complaints)
    assert machine.stdout is not None  # noqa: S101  asked for with PIPE
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            while True:
                left = began + timeout - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if not selector.select(left):
                    continue
                data = machine.stdout.read(PIECE)
                if (verdict := decide(data, time.monotonic() - began)) or not data:
                    return verdict
    finally:
        machine.kill()
        machine.wait()
        machine.stdout.close()


def _log(path: Path | None) -> IO[bytes]:
    try:
        return (path or Path(os.devnull)).open("wb", buffering=0)
    except OSError as error:
        raise _no_log(path, error) from error


def _no_log(path: Path | None, error: OSError) -> ErofsEdgeError:
    return ErofsEdgeError(f"cannot write the console's log: {error.strerror}", where=str(path))
