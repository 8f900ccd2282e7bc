# SPDX-License-Identifier: Apache-2.0
"""Turn the bytes of a serial console into events. Sans-I/O: the caller supplies bytes and times.

Consoles are noisy: escape sequences (ECMA-48 section 5.4, 8.3), carriage returns, pieces cut anywhere, bytes that are
not UTF-8. Memory is bounded whatever comes.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from erofs_edge.qemu.stages import Match, match_line

LINE_MAX = 1024
"""bytes; a longer line is split"""
TAIL_LINES = 40
TAIL_WIDTH = 400

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_ENDS = re.compile(rb"[\r\n]")


@dataclass(frozen=True, slots=True)
class Event:
    """A match, and the time when its line was complete, in the caller's seconds."""

    at: float
    match: Match


@dataclass(slots=True)
class Console:
    """Feed it the console's output; it keeps the last lines for error messages.

    wanted  regular expressions: each line that one matches is an event of the kind 'line', named by the expression
    """

    wanted: tuple[str, ...] = ()
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    _pending: bytes = b""
    _prompts: set[str] = field(default_factory=set)

    def feed(self, data: bytes, at: float) -> list[Event]:
        """The events completed by these bytes. `at` is the time of arrival, seconds."""
        events: list[Event] = []
        *lines, self._pending = _ENDS.split(self._pending + data)
        for line in lines:
            self._line(line, at, events)
        while len(self._pending) > LINE_MAX:
            line, self._pending = self._pending[:LINE_MAX], self._pending[LINE_MAX:]
            self._line(line, at, events)
        for match in match_line(clean(self._pending), partial=True):
            if match.name not in self._prompts:
                self._prompts.add(match.name)
                events.append(Event(at, match))
        return events

    def close(self, at: float) -> list[Event]:
        """The events of a last, unfinished line."""
        events: list[Event] = []
        line, self._pending = self._pending, b""
        self._line(line, at, events)
        return events

    def last_lines(self) -> list[str]:
        """The last lines, oldest first, including the unfinished one."""
        unfinished = clean(self._pending)[:TAIL_WIDTH]
        return [*self.tail, *([unfinished] if unfinished.strip() else [])]

    def _line(self, raw: bytes, at: float, events: list[Event]) -> None:
        line = clean(raw)
        if line.strip():
            self.tail.append(line[:TAIL_WIDTH])
        for match in match_line(line):
            if match.name not in self._prompts:
                events.append(Event(at, match))
        events += [Event(at, Match("line", text, line)) for text in self.wanted if re.search(text, line)]
        self._prompts.clear()


def clean(raw: bytes) -> str:
    """A line without escape sequences and control characters; bytes that are not UTF-8 become U+FFFD."""
    return _CONTROLS.sub(b"", _ESCAPES.sub(b"", raw).replace(b"\t", b" ")).decode(errors="replace").rstrip()
