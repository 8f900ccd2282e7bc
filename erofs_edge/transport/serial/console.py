# SPDX-License-Identifier: Apache-2.0
"""U-Boot's command line as a conversation: find the prompt, run commands, believe nothing that noise may have made.

A command is typed without its end, and the echo is compared; only what the device has read as it was meant is started.
Its exit code comes back twice in a line that nothing else can be. What fails on the way is done again, so every command
that is given here must bear being run twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from erofs_edge.errors import DeviceError, ProtocolError
from erofs_edge.transport.serial.line import BITS_PER_BYTE, Exchange, Io

CTRL_C = b"\x03"
ENTER = b"\r"
LINE_MAX = 480
"""bytes of a command line: CONFIG_SYS_CBSIZE is 512 on most boards, 256 on the smallest that run Linux"""
OUTPUT_MAX = 1 << 20  # bytes of one command's output
ATTEMPTS = 8
SETTLE = 0.3  # seconds of silence after which a console has said what it had to say
STOP_EVERY = 0.2  # seconds between keys that stop the autoboot
LONG_SILENCE = 2.4
"""seconds, after which a receiver of a file that has given up is through with throwing away what comes"""
PROMPT_MAX = 40  # characters
WAIT = 10.0  # seconds for a command

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\^-~])")


class LostError(Exception):
    """The line failed us in the middle of a command; it may be tried again."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command came to."""

    code: int
    output: str

    @property
    def ok(self) -> bool:
        return self.code == 0


class Console:
    """One console. `prompt` is known after `open`; `baud` is the rate of the line, for how long things take."""

    def __init__(self, baud: int, latency: float = 0.25, listen: float = 0.0) -> None:
        self.baud = baud
        self.latency = latency
        self.listen = listen  # seconds before anything is said to a console that has said nothing
        self.prompt = b""
        self._mark = 0
        self._early = b""  # what came with the start of a command

    def open(self, patience: float = 60.0) -> Exchange[None]:
        """Stop the autoboot, or find a prompt that is there already, and learn what it looks like.

        Raises DeviceError when nothing like a prompt comes within `patience` seconds of quiet and talk together.
        """
        said = (yield Io(b"", self.listen)) if self.listen else b""
        spent, key, turn = 0.0, CTRL_C + b" ", 0
        while spent < patience:
            turn += 1
            wait = STOP_EVERY if turn % 8 else LONG_SILENCE
            more = yield Io(key, wait)
            said = (said + more)[-4096:]
            spent += len(more) * BITS_PER_BYTE / self.baud if more else wait
            # a key for each silence, and one that falls into the countdown
            key = b"" if more and b"autoboot" not in more else CTRL_C + b" "
            if not more and re.search(rb"[>#\$] *$", _clean(said)):
                found = yield from self._learn()
                if found:
                    self.prompt = found
                    return
        raise DeviceError(
            f"no U-Boot prompt after {patience:g} s; the line said {_tail(said) or 'nothing'}",
            hint="reset the board; check the baud rate, and that U-Boot lets its autoboot be stopped (bootdelay)",
        )

    def _learn(self) -> Exchange[bytes]:
        """The prompt, if an empty line shows the same one twice; b"" otherwise."""
        seen = []
        for _ in range(2):
            yield from self.quiet(CTRL_C)
            said = yield from self.quiet(ENTER)
            seen.append(_clean(said).rpartition(b"\n")[2])
        fine = seen[0] == seen[1] and seen[0].strip() != b"" and len(seen[0]) <= PROMPT_MAX
        return seen[0] if fine else b""

    def quiet(self, data: bytes = b"", settle: float = SETTLE, limit: int = 64 << 10) -> Exchange[bytes]:
        """Send, then hear until `settle` seconds of silence, or more than `limit` bytes."""
        said = yield Io(data, settle)
        while len(said) < limit:
            more = yield Io(b"", settle)
            if not more:
                break
            said += more
        return said

    def run(self, command: str, *, wait: float = WAIT, attempts: int = ATTEMPTS) -> Exchange[Result]:
        """Run a command line; what it printed and its exit code. It may be run more than once.

        wait  seconds that it may be silent

        Raises DeviceError where the line does not get it through, ProtocolError where the console has no `$?`.
        """
        for attempt in range(attempts):
            try:
                yield from self.start(command, mark=True)
                return (yield from self.finish(wait))
            except LostError as error:
                lost = error
            yield from self.interrupt(attempt)
        raise DeviceError(f"the console did not run '{_short(command)}': {lost}")

    def agreed(self, command: str) -> Exchange[str]:
        """What a command prints, as it came twice: noise does not say the same thing two times."""
        said = [(yield from self.run(command)).output]
        while len(said) <= ATTEMPTS:
            said.append((yield from self.run(command)).output)
            if said[-1] in said[:-1]:
                return said[-1]
        raise DeviceError(
            f"'{_short(command)}' gives another answer each time", hint="the line loses characters: check the cable"
        )

    def start(self, command: str, *, mark: bool = False) -> Exchange[bytes]:
        """Type a command, compare its echo, start it. `mark`: its exit code is printed behind it (see `finish`).

        Returns what came with the start. Raises LostError where the echo differs.
        """
        if mark:
            self._mark = (self._mark + 1) % 1000
            command += f"; echo ={self._mark}=$?=$?="
        raw = command.encode("ascii")
        if len(raw) > LINE_MAX:
            raise ValueError(f"a command line of {len(raw)} bytes")
        heard = yield Io(raw, self._time(len(raw)))
        for _ in range(len(raw)):
            echo = _clean(heard)
            if len(echo) >= len(raw):
                break
            more = yield Io(b"", self._time(len(raw)))
            if not more:
                break
            heard += more
        if _clean(heard) != raw:
            raise LostError(f"it reads {_tail(_clean(heard))}")
        self._early = yield Io(ENTER, 0.0)
        return self._early

    def finish(self, wait: float = WAIT) -> Exchange[Result]:
        """Wait for the exit code of the command that was started with its mark."""
        heard, self._early = self._early, b""  # a host that was held up finds the answer there already
        seen = re.compile(rb"=%d=(\d+)=(\d+)=\r*\n" % self._mark)
        while not (found := seen.search(text := _clean(heard))):
            if len(heard) > OUTPUT_MAX:
                raise ProtocolError("the console does not stop talking", hint="is this U-Boot's console?")
            if b"=$?=" in text.partition(b"\n")[2]:
                raise ProtocolError("the console does not know '$?'", hint="a U-Boot with the hush shell is needed")
            more = yield Io(b"", wait + self.latency)
            if not more:
                raise LostError(f"no answer for {wait:g} s after {_tail(heard) or 'its start'}")
            heard += more
        if found[1] != found[2]:
            raise LostError("two exit codes")
        while not text[found.end() :].endswith(self.prompt):
            more = yield Io(b"", self.latency)
            if not more:
                break
            text = _clean(heard := heard + more)
        return Result(int(found[1]), text[: found.start()].decode("latin-1").replace("\r", "").strip("\n"))

    def interrupt(self, attempt: int = 0) -> Exchange[None]:
        """Whatever is half typed or under way is given up. Receivers of files need three of them."""
        yield from self.quiet(CTRL_C * 3 if attempt else CTRL_C, LONG_SILENCE if attempt else SETTLE)

    def _time(self, size: int) -> float:
        """Seconds for bytes there and back."""
        return 2 * size * BITS_PER_BYTE / self.baud + self.latency


def _clean(raw: bytes) -> bytes:
    """Without escape sequences and with line ends of one kind."""
    return _ESCAPES.sub(b"", raw).replace(b"\r\n", b"\n").replace(b"\n\r", b"\n").replace(b"\0", b"")


def _tail(raw: bytes) -> str:
    text = raw[-60:].decode("latin-1")
    return repr(text) if text else ""


def _short(command: str) -> str:
    return command if len(command) <= 60 else command[:57] + "…"
