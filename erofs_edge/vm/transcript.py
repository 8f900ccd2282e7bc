# SPDX-License-Identifier: Apache-2.0
"""Interpret the machine's output line by line: which package is being configured, since when, and how it ended.

dpkg's own messages come from its --status-fd (dpkg(1)): "processing: configure: NAME" before a package's scripts run.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from erofs_edge.errors import SourceError, ToolError

KEPT = 12
"""lines of a script that are quoted in an error"""
LONGEST = 400
"""characters of a line that are kept"""
SAID = re.compile(r"(\d+\.\d+) (.*)")
PROCESSING = re.compile(r"processing: (preinst|configure|trigproc): ([a-z0-9][a-z0-9+.-]*)")
CLOCK = re.compile(r"erofs-edge: clock (\d+(?:\.\d+)?) (\d+\.\d+)")
RESULT = re.compile(r"erofs-edge: result (.*)")
KERNEL = re.compile(r"\[ *\d+\.\d+\] ")
STATUS = re.compile(r"dpkg: error processing package ([a-z0-9][a-z0-9+.-]*)")
EXIT = re.compile(r".*script subprocess (?:returned error exit status|was killed by signal) (.*)")
WORDS = {"preinst": "preinst script", "configure": "postinst script", "trigproc": "postinst script (for a trigger)"}


@dataclass(slots=True)
class Transcript:
    """The state of a run.

    moments   (seconds since 1970 on the machine's clock, package) for each time that a package's scripts started
    seen      packages that dpkg has begun to configure
    result    the machine's final message; "" so far
    """

    moments: list[tuple[float, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    result: str = ""
    stage: str = ""
    package: str = ""
    _offset: float = 0.0
    _failed: str = ""
    _code: str = ""
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def see(self, line: str) -> bool:
        """Process a line of the console; return whether it shows progress."""
        if clock := CLOCK.match(line):
            self._offset = float(clock[1]) - float(clock[2])
            return True
        if result := RESULT.match(line):
            self.result = result[1]
            return True
        said = SAID.fullmatch(line)
        at, text = (float(said[1]), said[2]) if said else (0.0, line)
        processing = PROCESSING.match(text)
        if processing and not self._failed:
            self.stage, self.package = processing[1], processing[2]
            self.moments.append((at + self._offset, self.package))
            if self.stage == "configure":
                self.seen.add(self.package)
            self._lines.clear()
            return True
        if self._failed:  # dpkg's later output is not the script's
            self._code = self._code or ((code := EXIT.match(text)) is not None and code[1]) or ""
            return False
        if status := STATUS.match(text):
            self._failed = status[1]
            return False
        if text.strip() and not text.startswith("status: ") and not KERNEL.match(line):
            self._lines.append(text.rstrip()[:LONGEST])
        return False

    @property
    def last_lines(self) -> list[str]:
        """The newest lines of the output since the last package's turn."""
        return list(self._lines)

    def check(self) -> None:
        """Raises SourceError naming the package if its script failed, ToolError if the machine did."""
        word, _, rest = self.result.partition(" ")
        if word == "ok":
            return
        if word == "script":
            _, package, status = rest.split(" ")
            raise self.failure(package, f"failed with exit status {status}")
        if word == "dpkg":
            if self._code:
                raise self.failure(self._failed, f"failed with exit status {self._code}")
            raise SourceError(f"dpkg cannot configure {self._failed or 'the packages'}{self._said()}")
        raise ToolError(f"the machine for maintainer scripts {rest if rest else 'ended too early'}{self._said()}")

    def hung(self, seconds: float) -> SourceError | ToolError:
        """The error for a machine without new output for too long."""
        if not self.package:
            return ToolError(f"the machine for maintainer scripts did not start within {seconds:.0f} s{self._said()}")
        return self.failure(self.package, f"has not ended after {seconds:.0f} s")

    def failure(self, package: str, what: str) -> SourceError:
        """The error for a package's script."""
        word = WORDS.get(self.stage, "script")
        return SourceError(
            f"the {word} of {package} {what}{self._said()}",
            hint=f"leave {package} out, or set `configure: declarative`",
        )

    def _said(self) -> str:
        lines = "\n".join(f"    {line}" for line in self._lines)
        return f"; its last lines:\n{lines}" if lines else " without a word"
