# SPDX-License-Identifier: Apache-2.0
"""U-Boot's command line as a conversation: find the prompt, run commands, and trust nothing that noise could have made.

A command is typed without its line end and its echo compared, so only a command that the device has read correctly is
started. Its exit code comes back twice, in a line that nothing else can produce. Failures on the way are retried, so
every command given here must be safe to run twice.
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
OUTPUT_MAX = 1 << 20  # bytes of output per command
ATTEMPTS = 8
SETTLE = 0.3  # seconds of silence after which a console has nothing more to say
STOP_EVERY = 0.2  # seconds between the keys that stop the autoboot
LONG_SILENCE = 2.4
"""seconds after which a file receiver that has given up has stopped discarding input"""
PROMPT_MAX = 40  # characters
BEFORE_ELSEWHERE = 8  # silences at one rate before another is tried
WAIT = 10.0  # seconds for a command
LOSES = "check the cable, and whether the board was reset; a lower baud rate may help"

_PROMPT = re.compile(rb"[>#\$] *$")
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\^-~])")


class LostError(Exception):
    """The line failed in the middle of a command, which may be retried."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command."""

    code: int
    output: str

    @property
    def ok(self) -> bool:
        return self.code == 0


class Console:
    """One console. `prompt` is known after `open`; `baud` is the line's rate, for estimating durations."""

    def __init__(self, baud: int, latency: float = 0.25, listen: float = 0.0) -> None:
        self.baud = baud
        self.latency = latency
        self.listen = listen  # seconds to wait before writing to a console that has been silent
        self.prompt = b""
        self.losses = 0  # commands that did not get across
        self._mark = 0
        self._early = b""  # what came with the start of a command

    def open(self, patience: float = 60.0, *, other: int = 0, stop: bytes = b"") -> Exchange[None]:
        """Stop the autoboot, or find an existing prompt, and learn what it looks like.

        other  a rate that an interrupted session may have left the board at
        stop   the keys that stop the autoboot, if not any key does

        Raises DeviceError if nothing like a prompt appears within `patience` seconds, including output and silence.
        """
        said = (yield Io(b"", self.listen)) if self.listen else b""
        # other keys before them would spoil a password (U-Boot's common/autoboot.c, CONFIG_AUTOBOOT_ENCRYPTION)
        usual = stop or CTRL_C + b" "
        spent, key, turn, silences = 0.0, usual, 0, 0
        while spent < patience:
            turn += 1
            wait = STOP_EVERY if turn % 8 else LONG_SILENCE
            if key and stop and turn % 8 == 0:
                key = CTRL_C * 3
            more = yield Io(key, wait)
            said = (said + more)[-4096:]
            spent += len(more) * BITS_PER_BYTE / self.baud if more else wait
            # one key per silence, so that one falls into the countdown
            key = b"" if more and b"autoboot" not in more else usual
            if not more and _PROMPT.search(_clean(said)):
                found = yield from self._learn()
                if found:
                    self.prompt = found
                    return
            silences += not more
            if other and not more and silences == BEFORE_ELSEWHERE and (yield from self._elsewhere(other)):
                return
        if other and (yield from self._elsewhere(other)):
            return
        raise DeviceError(
            f"no U-Boot prompt after {patience:g} s; the line said {_tail(said) or 'nothing'}",
            hint="reset the board; check the baud rate, and that the autoboot can be stopped (stop=KEYS in the address "
            "if not any key does it)",
        )

    def _elsewhere(self, baud: int) -> Exchange[bool]:
        """Look for a prompt at another rate. If there is none, the old rate is set again."""
        before, self.baud = self.baud, baud
        heard = yield Io(CTRL_C * 3, LONG_SILENCE, baud)
        for _ in range(4 if heard else 0):  # a receiver of files may have to give up first
            heard += yield from self.quiet()
            if _PROMPT.search(_clean(heard)) and (found := (yield from self._learn())):
                self.prompt = found
                return True
            heard = yield Io(CTRL_C * 3, LONG_SILENCE)  # it listens to these right after it has said something
        self.baud = before
        yield Io(baud=before)
        return False

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
        """Send, then listen until `settle` seconds of silence, or for more than `limit` bytes."""
        said = yield Io(data, settle)
        while len(said) < limit:
            more = yield Io(b"", settle)
            if not more:
                break
            said += more
        return said

    def run(self, command: str, *, wait: float = WAIT, attempts: int = ATTEMPTS) -> Exchange[Result]:
        """Run a command line; return what it printed and its exit code. It may be run more than once.

        wait  seconds that it may be silent

        Raises DeviceError if the line does not get it across, ProtocolError if the console has no `$?`.
        """
        for attempt in range(attempts):
            try:
                yield from self.start(command, mark=True)
                return (yield from self.finish(wait))
            except LostError as error:
                lost = error
                self.losses += 1
            yield from self.interrupt(attempt)
        raise DeviceError(f"the console did not run '{_short(command)}': {lost}", hint=LOSES)

    def agreed(self, command: str) -> Exchange[str]:
        """The output of a command, once it came the same twice: noise does not repeat itself."""
        said = [(yield from self.run(command)).output]
        while len(said) <= ATTEMPTS:
            said.append((yield from self.run(command)).output)
            if said[-1] in said[:-1]:
                return said[-1]
        raise DeviceError(f"'{_short(command)}' gives another answer each time", hint=LOSES)

    def start(self, command: str, *, mark: bool = False) -> Exchange[bytes]:
        """Type a command, compare its echo, start it. `mark`: the marker that is printed with its exit code (see
        `finish`).

        Returns what came with the start. Raises LostError if the echo differs.
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
            raise LostError(f"it reads {_tail(_clean(heard)) or 'nothing'}")
        self._early = yield Io(ENTER, 0.0)
        return self._early

    def finish(self, wait: float = WAIT) -> Exchange[Result]:
        """Wait for the exit code of the command that was started with this mark."""
        heard, self._early = self._early, b""  # if this host was delayed, the answer is already here
        seen = re.compile(rb"=%d=(\d+)=(\d+)=\r*\n" % self._mark)
        while not (found := seen.search(text := _clean(heard))):
            if len(heard) > OUTPUT_MAX:
                raise ProtocolError("the console does not stop talking", hint="is this U-Boot's console?")
            if b"=$?=" in text.partition(b"\n")[2]:
                raise ProtocolError("the console does not know '$?'", hint="a U-Boot with the hush shell is needed")
            if b"Unknown command 'echo'" in text:
                raise ProtocolError("the console has no `echo`", hint="build U-Boot with CONFIG_CMD_ECHO")
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
        """Abandon whatever is half typed or running. Receivers of files need three interrupts."""
        yield from self.quiet(CTRL_C * 3 if attempt else CTRL_C, LONG_SILENCE if attempt else SETTLE)

    def _time(self, size: int) -> float:
        """Seconds for bytes there and back."""
        return 2 * size * BITS_PER_BYTE / self.baud + self.latency


def _clean(raw: bytes) -> bytes:
    """Remove escape sequences and unify line ends."""
    return _ESCAPES.sub(b"", raw).replace(b"\r\n", b"\n").replace(b"\n\r", b"\n").replace(b"\0", b"")


def _tail(raw: bytes) -> str:
    text = raw[-60:].decode("latin-1")
    return repr(text) if text else ""


def _short(command: str) -> str:
    return command if len(command) <= 60 else command[:57] + "…"
